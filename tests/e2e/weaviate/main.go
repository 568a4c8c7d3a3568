// Calls of Weaviate's own client of its img2vec-neural container, for `make oip`.
//
// Built in a module of its own with the Go of the machine. Prints a line of JSON for each call: its
// name, and how it went.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/weaviate/weaviate/modules/img2vec-neural/clients"
)

type report struct {
	Call    string `json:"call"`
	Outcome string `json:"outcome"`
	Detail  string `json:"detail"`
}

func main() {
	client := clients.New("http://"+os.Args[1], logrus.New())
	vectorize := func(text string) func() (string, error) {
		return func() (string, error) {
			result, err := client.Vectorize(context.Background(), "1", text)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d values", len(result.Vector)), nil
		}
	}
	for _, one := range []struct {
		name string
		call func() (string, error)
	}{
		{"WaitForStartup", func() (string, error) {
			return "", client.WaitForStartup(context.Background(), time.Second)
		}},
		{"Vectorize", vectorize(picture())},
		{"Vectorize, no image", vectorize(base64.StdEncoding.EncodeToString([]byte("no image")))},
		{"Vectorize, no base64", vectorize("no base64")},
	} {
		made := report{Call: one.name, Outcome: "works"}
		detail, err := one.call()
		made.Detail = detail
		if err != nil {
			made.Outcome, made.Detail = "refused: ", err.Error()
		}
		line, _ := json.Marshal(made)
		fmt.Println(string(line))
	}
}

// picture returns a small PNG file in base64.
func picture() string {
	var file strings.Builder
	if err := png.Encode(&file, image.NewRGBA(image.Rect(0, 0, 16, 12))); err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString([]byte(file.String()))
}

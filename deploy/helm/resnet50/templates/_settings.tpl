{{- /* The server's settings, as environment variables. */ -}}

{{- /* A value as text: a list by commas, a whole number without an exponent. */ -}}
{{- define "resnet50.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}
{{- else }}{{ . }}
{{- end -}}
{{- end -}}

{{- /*
Threads that follow from the CPUs. Without a CPU limit the server would count those of the node; with
one it reads the quota itself.
*/ -}}
{{- define "resnet50.threads" -}}
{{- $cpus := int .Values.cpus -}}
{{- if dig "limits" "cpu" "" .Values.resources -}}
{}
{{- else if .Values.gpu.enabled -}}
decode_threads: {{ $cpus }}
{{- else -}}
{{- $instances := max 1 (div $cpus 8) -}}
instances: {{ $instances }}
engine_threads: {{ div $cpus $instances }}
decode_threads: {{ max 1 (div (add $cpus 2) 3) }}
{{- end -}}
{{- end -}}

{{- /* All environment variables of the server but extraEnv, as a mapping. */ -}}
{{- define "resnet50.environment" -}}
{{- $values := .Values -}}
{{- $settings := dict
  "listen" "0.0.0.0:50051"
  "metrics_listen" "0.0.0.0:9464"
  "graph_cache_dir" "/cache"
  "download" false
-}}
{{- $settings = merge (deepCopy $values.settings) (include "resnet50.threads" . | fromYaml) $settings -}}
{{- if $values.variantsFile -}}
{{- $_ := set $settings "variants_file" "/etc/resnet50/variants.toml" -}}
{{- else -}}
{{- $_ := set $settings "variants" $values.variants -}}
{{- end -}}
{{- if $values.tls.secretName -}}
{{- $settings = merge $settings (dict "tls_cert" "/tls/tls.crt" "tls_key" "/tls/tls.key") -}}
{{- else -}}
{{- $_ := set $settings "allow_plaintext" true -}}
{{- end -}}
{{- if $values.tls.clientCaSecretName -}}
{{- $_ := required "tls.clientCaSecretName: needs tls.secretName, since client certificates are part of TLS" $values.tls.secretName -}}
{{- $_ := set $settings "tls_client_ca" (print "/client-ca/" $values.tls.clientCaKey) -}}
{{- end -}}
{{- if $values.tokens.secretName -}}
{{- $_ := set $settings "tokens_file" "/tokens/tokens.toml" -}}
{{- end -}}
{{- if $values.admin.enabled -}}
{{- $_ := required "admin.enabled: needs tokens.secretName, since changes take a token with the scope admin" $values.tokens.secretName -}}
{{- $_ := set $settings "variants_dir" "/custom-variants" -}}
{{- end -}}
{{- if $values.oip.enabled -}}
{{- $settings = merge $settings (dict "oip" true "oip_model_name" $values.oip.modelName) -}}
{{- end -}}
{{- if $values.http.enabled -}}
{{- $_ := set $settings "http_listen" (print "0.0.0.0:" (int $values.http.port)) -}}
{{- end -}}
TORCH_HOME: {{ $values.weights.path | quote }}
# With a GPU: compiled kernels. The image's default, below /weights, is read-only here.
TORCHINDUCTOR_CACHE_DIR: /cache/inductor
TRITON_CACHE_DIR: /cache/triton
# For libraries that write to the home directory.
HOME: /tmp
{{- range $name, $value := $settings }}{{ if not (kindIs "invalid" $value) }}
RESNET50_{{ upper $name }}: {{ include "resnet50.text" $value | quote }}
{{- end }}{{ end }}
{{- if $values.http.enabled }}
RESNET50_GATEWAY_METRICS_LISTEN: 0.0.0.0:9465
{{- range $name, $value := $values.http.settings }}{{ if not (kindIs "invalid" $value) }}
RESNET50_GATEWAY_{{ upper $name }}: {{ include "resnet50.text" $value | quote }}
{{- end }}{{ end }}
{{- end }}
{{- end -}}

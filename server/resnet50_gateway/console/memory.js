/** The images of this page, with their embeddings, nearest first. */

const MOST = 48;
const THUMBNAIL = 160;

export class ImageMemory {
  #images = [];
  #numbers = 0;

  /**
   * Keep an image; the oldest one is dropped.
   * @param {File} file
   * @param {object} answer Of the gateway.
   * @param {{values: number[], space: string}|undefined} embedding
   * @param {object} facts Of the call, kept beside it.
   */
  async add(file, answer, embedding, facts) {
    const thumbnail = await thumbnailOf(file);
    this.#numbers += 1;
    const image = {
      number: this.#numbers,
      file,
      answer,
      ...facts,
      thumbnail,
      space: embedding?.space,
      unit: unitOf(embedding?.values),
    };
    this.#images.push(image);
    if (this.#images.length > MOST) {
      const [oldest] = this.#images.splice(0, 1);
      if (oldest.thumbnail) URL.revokeObjectURL(oldest.thumbnail);
    }
    return image;
  }

  /** Return the others, nearest first: [{image, cosine}]; of other spaces without a cosine. */
  nearest(image) {
    return this.#images
      .filter((other) => other !== image)
      .map((other) => ({ image: other, cosine: cosineOf(image, other) }))
      .sort(
        (a, b) => (b.cosine ?? -2) - (a.cosine ?? -2) || b.image.number - a.image.number,
      );
  }
}

/** Scale a vector to length 1; null if there is none, or of zeros only. */
export function unitOf(values) {
  const length = values ? Math.hypot(...values) : 0;
  return length > 0 ? Float32Array.from(values, (value) => value / length) : null;
}

/** Return the cosine of two images' embeddings; null unless both are of the same space. */
export function cosineOf(one, other) {
  if (!one.unit || !other.unit || one.space !== other.space) return null;
  let sum = 0;
  for (let index = 0; index < one.unit.length; index += 1) sum += one.unit[index] * other.unit[index];
  return Math.min(1, sum);
}

/** Return the URL of a small square of an image; null if the browser cannot show its format. */
async function thumbnailOf(file) {
  try {
    const image = await createImageBitmap(file);
    const side = Math.min(image.width, image.height);
    const canvas = new OffscreenCanvas(THUMBNAIL, THUMBNAIL);
    canvas
      .getContext("2d")
      .drawImage(
        image,
        ...[(image.width - side) / 2, (image.height - side) / 2, side, side],
        ...[0, 0, THUMBNAIL, THUMBNAIL],
      );
    image.close();
    return URL.createObjectURL(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 }));
  } catch {
    return null;
  }
}

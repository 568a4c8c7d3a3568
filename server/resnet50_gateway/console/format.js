/** Numbers as text. An unknown one is an en dash. */

export const UNKNOWN = "–";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

const known = (value) => value !== null && value !== undefined && Number.isFinite(Number(value));

/** Three significant digits, with thousands separated: 0.0412, 3.14, 25.3, 1,203. */
export function number(value) {
  if (!known(value)) return UNKNOWN;
  const exact = Number(value);
  const size = Math.abs(exact);
  if (size >= 99.95) return WHOLE.format(exact);
  if (size < 0.0005) return "0";
  const digits = [[9.995, 1], [0.9995, 2], [0, 3]].find(([least]) => size >= least)[1];
  return exact.toFixed(digits);
}

export function count(value) {
  return known(value) ? WHOLE.format(Number(value)) : UNKNOWN;
}

/** A share of 1 as a percentage; small ones keep their first digits. */
export function percent(share) {
  if (!known(share)) return UNKNOWN;
  const value = 100 * Number(share);
  if (value > 0 && value < 0.01) return "< 0.01 %";
  if (value >= 99.95 || value === 0) return `${value.toFixed(0)} %`;
  return `${value.toFixed(value < 1 ? 2 : 1)} %`;
}

export function milliseconds(value) {
  return known(value) ? `${number(value)} ms` : UNKNOWN;
}

export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  let rest = Number(value);
  let unit = 0;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? WHOLE.format(rest) : number(rest)} ${UNITS[unit]}`;
}

export function cosine(value) {
  return known(value) ? Number(value).toFixed(3) : UNKNOWN;
}

export function seconds(value) {
  if (!known(value)) return UNKNOWN;
  const whole = Math.round(Number(value));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Twelve digits of a digest, as in names of embedding spaces. */
export function shortDigest(digest) {
  return digest ? digest.slice(0, 12) : UNKNOWN;
}

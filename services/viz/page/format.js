// How numbers and times are written. Prices and volumes arrive as decimal strings and stay exact: floats only draw.

const compactFormat = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const countFormat = new Intl.NumberFormat("en");

/** Count the digits behind the point: 2 for "0.10". */
export function decimals(text) {
  const point = text.indexOf(".");
  return point < 0 ? 0 : text.length - point - 1;
}

/** Separate thousands without touching a digit: "1234567.80" becomes "1,234,567.80". */
export function grouped(text) {
  const [whole, fraction] = text.split(".");
  const separated = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return fraction === undefined ? separated : `${separated}.${fraction}`;
}

export function compact(text) {
  return text === "" ? "—" : compactFormat.format(Number(text));
}

export function count(number) {
  return countFormat.format(number);
}

/** Return the change from one decimal string to another in percent, or null if there is nothing to compare with. */
export function change(from, to) {
  const start = Number(from);
  if (from === "" || to === "" || !(start > 0)) return null;
  return (Number(to) / start - 1) * 100;
}

export function percent(value) {
  if (value === null) return "—";
  const text = Math.abs(value).toFixed(2);
  if (text === "0.00") return "0.00%";
  return `${value > 0 ? "+" : "−"}${text}%`;
}

export function tone(value) {
  return value > 0 ? "up" : value < 0 ? "down" : "";
}

const two = (number) => String(number).padStart(2, "0");

/** Write an open time as its interval needs it: the day for days and more, else the minute. */
export function opened(ms, interval) {
  const iso = new Date(ms).toISOString();
  if (interval === "1M") return iso.slice(0, 7);
  return /[dw]$/.test(interval) ? iso.slice(0, 10) : `${iso.slice(0, 10)} ${iso.slice(11, 16)}`;
}

export function clock(ms) {
  return new Date(ms).toISOString().slice(11, 19);
}

/** Write a duration: 00:42, 03:59:10, 6d 04:00:00. */
export function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor(seconds / 3600) % 24;
  const minutes = Math.floor(seconds / 60) % 60;
  const tail = `${two(minutes)}:${two(seconds % 60)}`;
  if (days) return `${days}d ${two(hours)}:${tail}`;
  return hours ? `${two(hours)}:${tail}` : tail;
}

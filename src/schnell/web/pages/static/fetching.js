// The progress of a LoRA's download as text.

import { locale, t } from "./texts.js";

export function fetchingText({ received, total }) {
  const values = { received: megabytes(received), total: megabytes(total ?? 0) };
  return total ? t("Fetching: {received} of {total} MB", values) : t("Fetching: {received} MB", values);
}

export function megabytes(bytes) {
  return (bytes / 1e6).toLocaleString(locale, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

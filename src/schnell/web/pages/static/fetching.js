// How far the download of a LoRA is, in words.

export function fetchingText({ received, total }) {
  return `Fetching: ${megabytes(received)}${total ? ` of ${megabytes(total)}` : ""} MB`;
}

export function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

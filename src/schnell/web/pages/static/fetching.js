// The progress of a LoRA's download as text.

export function fetchingText({ received, total }) {
  return `Fetching: ${megabytes(received)}${total ? ` of ${megabytes(total)}` : ""} MB`;
}

export function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

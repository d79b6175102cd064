#!/bin/sh
# Chromium for the browser tests: Debian's where we may install it, else the one that Playwright fetches. Best is the
# headless shell, which takes two thirds of the time of a whole browser.
# Usage: install_browser.sh VENV_BIN. A machine without any still runs every other test.
set -u
there() {
    for browser in "$@"; do
        command -v "$browser" >/dev/null 2>&1 && return 0
    done
    return 1
}
there chromium-headless-shell && exit 0
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo -n"; fi
    export DEBIAN_FRONTEND=noninteractive
    apt_get() { $as_root apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20 "$@" >/dev/null 2>&1; }
    # a machine with a browser needs no fresh lists of packages: what its old ones do not know is left out
    there chromium chromium-browser google-chrome || apt_get update
    apt_get install -y --no-install-recommends chromium-headless-shell && exit 0
    there chromium chromium-browser google-chrome && exit 0
    apt_get install -y --no-install-recommends chromium && exit 0
fi
there chromium chromium-browser google-chrome && exit 0
"$1/playwright" install chromium >/dev/null 2>&1 && exit 0
echo "no browser could be installed: the browser tests will be skipped (apt-get install chromium)" >&2
exit 0

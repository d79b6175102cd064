#!/bin/sh
# Chromium for the browser tests: Debian's where we may install it, else the one that Playwright fetches.
# Usage: install_browser.sh VENV_BIN. A machine without either still runs every other test.
set -u
for browser in chromium chromium-browser google-chrome; do
    command -v "$browser" >/dev/null 2>&1 && exit 0
done
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo -n"; fi
    export DEBIAN_FRONTEND=noninteractive
    if $as_root apt-get update -qq >/dev/null 2>&1 &&
        $as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; then
        exit 0
    fi
fi
"$1/playwright" install chromium >/dev/null 2>&1 && exit 0
echo "no browser could be installed: the browser tests will be skipped (apt-get install chromium)" >&2
exit 0

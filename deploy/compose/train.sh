#!/bin/sh
# train.sh CONFIG: train it in /data, reporting to the monitor at MONITOR_URL.
set -eu
: "${MONITOR_URL:?set it to the address of the monitor, such as http://monitor:8321}"
mkdir -p /data/runs
{
    cat "$1"
    printf '\n[link]\nurl = "%s"\nflush_s = %s\nhold_s = %s\n' "$MONITOR_URL" "${FLUSH_S:-0.5}" "${FLUSH_S:-0.5}"
} >/data/config.toml
exec python ${TRAINER:--m trainer run} /data/config.toml

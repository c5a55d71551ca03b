#!/bin/sh
# Healthy: something below /data, the maps apart, was written within the last two minutes.
[ -n "$(find /data -path /data/data -prune -o -type f -mmin -2 -print -quit)" ]

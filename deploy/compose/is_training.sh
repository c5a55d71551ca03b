#!/bin/sh
# Healthy: something below /data was written within the last two minutes.
[ -n "$(find /data -type f -mmin -2 -print -quit)" ]

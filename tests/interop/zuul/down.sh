#!/bin/bash
# down.sh FOLDER: ends what up.sh started, by pid.
for file in "$1"/pids/*; do
  [ -e "$file" ] || continue
  pid=$(cat "$file")
  case $file in */postgres) pid=$(head -1 "$1/pg/postmaster.pid" 2>/dev/null || echo "$pid") ;; esac
  kill "$pid" 2>/dev/null
done
sleep 3
for file in "$1"/pids/*; do
  [ -e "$file" ] || continue
  pid=$(cat "$file")
  grep -zq "$1" "/proc/$pid/cmdline" 2>/dev/null && kill -9 "$pid"
done
rm -f "$1"/pids/*

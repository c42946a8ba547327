#!/bin/bash
# down.sh FOLDER: ends what up.sh started, by pid: each is the leader of a group. A pid of another program is left alone.
ours() { grep -zqF "$folder" "/proc/$1/cmdline" 2>/dev/null; }

folder=$(realpath -m "$1")
for file in "$folder"/pids/*; do
  [ -e "$file" ] || continue
  pid=$(cat "$file")
  case $file in
    */postgres) pid=$(head -1 "$folder/pg/postmaster.pid" 2>/dev/null) && ours "$pid" && kill -INT "$pid" ;; # waits for no client
    *) ours "$pid" && kill "$pid" ;;
  esac
done
for _ in $(seq 50); do
  left=""
  for file in "$folder"/pids/*; do
    [ -e "$file" ] && ours "$(cat "$file")" && left=yes
  done
  [ -z "$left" ] && break
  sleep 0.2
done
for file in "$folder"/pids/*; do
  [ -e "$file" ] || continue
  for pid in $(pgrep -g "$(cat "$file")"); do
    ours "$pid" && kill -9 "$pid"
  done
done
rm -f "$folder"/pids/*

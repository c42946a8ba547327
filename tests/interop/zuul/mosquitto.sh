#!/bin/bash
# mosquitto.sh FOLDER PORT: configures a mosquitto on loopback, with TLS, passwords and an access list.
set -eu
mkdir -p "$1"
cd "$1"
folder=$PWD port=$2
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -x509 $key -days 2 -subj /CN=ciml-test-ca -keyout ca.key -out ca.pem 2>/dev/null
openssl req $key -subj /CN=localhost -keyout server.key -out server.csr 2>/dev/null
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem \
  -extfile <(echo subjectAltName=DNS:localhost,IP:127.0.0.1) 2>/dev/null
: >passwd
mosquitto_passwd -b passwd zuul zuul-secret
mosquitto_passwd -b passwd ciml ciml-secret
printf 'user zuul\ntopic write zuul/#\n\nuser ciml\ntopic read zuul/#\n' >acl
chmod 600 passwd acl
cat >mosquitto.conf <<C
per_listener_settings false
listener $port 127.0.0.1
cafile $folder/ca.pem
certfile $folder/server.pem
keyfile $folder/server.key
tls_version tlsv1.3
allow_anonymous false
password_file $folder/passwd
acl_file $folder/acl
user root
persistence false
max_queued_messages 1000
C

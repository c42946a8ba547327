#!/bin/bash
# up.sh FOLDER [install]: a whole CI system on loopback: Gerrit, Zuul (scheduler, executor, web), ZooKeeper with TLS, PostgreSQL,
# mosquitto with TLS, and a web server of logs. Jobs run ciml of $CIML_PYTHON (by default python3). It needs root, for
# bubblewrap and two users. FOLDER/pids has all that it started; down.sh FOLDER ends it.
set -eu
folder=$(realpath -m "$1")
here=$(cd "$(dirname "$0")" && pwd)
engines=$(cd "$here/../../../engines" && pwd)
java=${JAVA_HOME:-/usr/lib/jvm/java-17-openjdk-amd64}/bin/java
python=${CIML_PYTHON:-python3}
postgres=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1)
gerrit=3.10.2

check_needs() {
  missing=""
  [ "$(id -u)" = 0 ] || missing="root"
  for program in bwrap mosquitto mosquitto_passwd openssl git curl ssh-keygen psql; do
    command -v $program >/dev/null || missing="$missing $program"
  done
  [ -x "$java" ] || missing="$missing java-17"
  [ -n "$postgres" ] || missing="$missing postgresql"
  [ -e /usr/share/java/zookeeper.jar ] || missing="$missing zookeeper"
  [ -e "$folder/installed" ] || command -v mvn >/dev/null || missing="$missing mvn"
  "$python" -c 'import ciml' 2>/dev/null || missing="$missing ciml(CIML_PYTHON)"
  if [ -n "$missing" ]; then
    echo "the real Zuul needs root and the Debian packages bubblewrap mosquitto zookeeper postgresql git curl" \
      "openssh-client openssl openjdk-17-jdk-headless maven; missing:$missing" >&2
    exit 2
  fi
}

wait_for() {
  for _ in $(seq 900); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  echo "up.sh: not ready after 3 minutes: $*; see $folder/logs" >&2
  exit 1
}

run() {
  name=$1; shift
  setsid "$@" >"$folder/logs/$name.log" 2>&1 </dev/null &
  echo $! >"$folder/pids/$name"
}

install_all() {
  python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install -q zuul==14.3.0
  # zuul-manage-ansible would install 1.6 GB; these jobs need this much of it.
  python3 -m venv "$folder/ansible/11"
  "$folder/ansible/11/bin/pip" install -q 'ansible-core==2.18.*' voluptuous jmespath google-re2
  ln -sfn 11 "$folder/ansible/9"
  mvn -q -B -f "$engines/gerrit.pom.xml" -Dgerrit.version=$gerrit dependency:copy-dependencies \
    -DoutputDirectory="$folder/gerrit/lib"
  "${java}c" -nowarn -d "$folder/gerrit/classes" -cp "$folder/gerrit/lib/*" "$engines/RunGerrit.java"
  echo $gerrit >"$folder/gerrit/classes/com/google/gerrit/common/Version" # Zuul cannot parse the default, (dev)
  touch "$folder/installed"
}

configure() {
  id zuul >/dev/null 2>&1 || useradd -r -m -d /var/lib/zuul -s /bin/bash zuul
  prefix=$(python3 -c 'import sys; print(sys.base_prefix)')
  ciml=$("$python" -c 'import ciml, os, pathlib, sys
paths = {sys.prefix, sys.base_prefix, pathlib.Path(ciml.__file__).parents[1]}
print(":".join(sorted(map(os.path.realpath, paths))))') # bubblewrap cannot bind a link
  sed -e "s#@DIR@#$folder#g; s#@ANSIBLE@#$folder/ansible#g; s#@VENV@#$folder/venv#g; s#@PYTHON@#$prefix:$ciml#g" \
    "$here/zuul.conf" >"$folder/etc/zuul.conf"
  cp "$here/main.yaml" "$here/logging.conf" "$folder/etc/"
  "$python" - "$folder" >"$folder/etc/site-vars.yaml" <<'P'
import ciml, json, pathlib, sys
checkout = str(pathlib.Path(ciml.__file__).parents[1])
print(json.dumps({"zuul_site": {"logs": f"{sys.argv[1]}/sites", "scratch": f"{sys.argv[1]}/scratch", "mirror": "http://127.0.0.1:19002", "python": sys.executable, "dool": str(pathlib.Path(sys.executable).with_name("dool")), "checkout": checkout}}))
P
  [ -e "$folder/etc/id_rsa" ] || ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -f "$folder/etc/id_rsa"
  [ -e "$folder/etc/ciml_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$folder/etc/ciml_key"
}

certify() {
  cd "$folder/tls"
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=zk-ca -keyout ca.key -out ca.pem 2>/dev/null
  openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out csr 2>/dev/null
  openssl x509 -req -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem \
    -extfile <(echo subjectAltName=DNS:localhost,IP:127.0.0.1) 2>/dev/null
  cat key.pem cert.pem >both.pem
  cat >"$folder/etc/zoo.cfg" <<C
tickTime=2000
dataDir=$folder/zk
secureClientPort=12281
secureClientPortAddress=127.0.0.1
serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory
ssl.keyStore.location=$folder/tls/both.pem
ssl.trustStore.location=$folder/tls/ca.pem
ssl.hostnameVerification=false
admin.enableServer=false
C
}

start_servers() {
  jars=""
  for jar in zookeeper zookeeper-jute netty-{all,common,buffer,handler,codec,resolver,transport} \
    netty-transport-native-{epoll,unix-common} slf4j-api slf4j-simple snappy-java metrics-core commons-cli; do
    jars="$jars:/usr/share/java/$jar.jar"
  done
  run mosquitto mosquitto -c "$folder/mqtt/mosquitto.conf"
  run zookeeper java -Xmx128m -cp "${jars#:}" org.apache.zookeeper.server.quorum.QuorumPeerMain "$folder/etc/zoo.cfg"
  run postgres runuser -u postgres -- "$postgres/postgres" -D "$folder/pg" -h 127.0.0.1 -p 15432 -k /tmp \
    -c fsync=off -c shared_buffers=32MB
  backend=com.google.common.flogger.backend.log4j.Log4jBackendFactory#getInstance
  context=com.google.gerrit.server.logging.LoggingContext#getInstance
  run gerrit "$java" -Xmx128m -XX:+UseSerialGC -Dflogger.backend_factory=$backend -Dflogger.logging_context=$context \
    -cp "$folder/gerrit/classes:$folder/gerrit/lib/*" RunGerrit Daemon -d "$folder/gerrit/site" --headless --console-log
  wait_for psql -h 127.0.0.1 -p 15432 -U postgres -c 'select 1'
  psql -h 127.0.0.1 -p 15432 -U postgres -qc "create role zuul login" -c "create database zuul owner zuul" 2>/dev/null || true
  wait_for curl -sf http://127.0.0.1:18080/config/server/version
  python3 "$here/gerrit_setup.py" "$folder/etc"
}

streams() { # Gerrit never repeats an event, so Zuul must listen before the first: this connection is one, Zuul's another
  shown=$(ssh -i "$folder/etc/id_rsa" -p 29418 -o StrictHostKeyChecking=no -o UserKnownHostsFile="$folder/etc/known" \
    zuul@127.0.0.1 gerrit show-connections 2>/dev/null)
  [ "$(echo "$shown" | grep -c zuul)" -ge 2 ]
}

start_zuul() {
  export PATH="$folder/venv/bin:$PATH"
  run scheduler zuul-scheduler -f -c "$folder/etc/zuul.conf"
  run executor python "$here/executor.py" -f -c "$folder/etc/zuul.conf"
  run web zuul-web -f -c "$folder/etc/zuul.conf"
  run logs python3 -m http.server -b 127.0.0.1 -d "$folder/sites" 19001
  wait_for curl -sf http://127.0.0.1:19000/api/tenant/ciml-test/jobs
  wait_for streams
}

check_needs
mkdir -p "$folder"/{etc,logs,pids,sites,scratch,state/{scheduler,executor,web},jobs,gerrit/classes/com/google/gerrit/common,gerrit/site/etc,tls,pg}
began=$(date +%s)
[ -e "$folder/installed" ] || install_all
[ "${2:-}" != install ] || exit 0
configure
rm -rf "$folder/zk"; mkdir "$folder/zk" # sessions of a killed Zuul would hold its locks for 15 s
certify
bash "$here/mosquitto.sh" "$folder/mqtt" 18883
if [ ! -e "$folder/gerrit/site/git" ]; then
  cp "$here/gerrit.config" "$folder/gerrit/site/etc/"
  "$java" -Xmx256m -cp "$folder/gerrit/classes:$folder/gerrit/lib/*" RunGerrit Init --batch --dev --no-auto-start \
    -d "$folder/gerrit/site" >"$folder/logs/gerrit-init.log" 2>&1
fi
if [ ! -e "$folder/pg/PG_VERSION" ]; then
  chown postgres: "$folder/pg"
  runuser -u postgres -- "$postgres/initdb" -D "$folder/pg" -A trust -U postgres >/dev/null
fi
start_servers
start_zuul
echo "ready in $(($(date +%s) - began)) s"

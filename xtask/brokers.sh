#!/usr/bin/env bash
#
# brokers - the real message brokers that postrider is tested on, on this machine.
#
#   brokers install [NAME...]   fetch what is missing (apt, Maven, Go); later runs are instant
#   brokers up      [NAME...]   install if need be, start, wait until ready, print the URLs
#   brokers down    [NAME...]   stop in good order, keep the data
#   brokers wipe    [NAME...]   stop and delete data, settings and log
#   brokers kill     NAME...    SIGKILL the whole broker, keep the data (a crash)
#   brokers start    NAME...    start again on the data, settings and ports of the last `up`
#   brokers pause    NAME...    SIGSTOP: the ports still accept, nothing answers
#   brokers resume   NAME...    SIGCONT
#   brokers status  [NAME...]   state, pid, memory, version, URL
#   brokers env     [NAME...]   print `export KAFKA_URL=...` lines: eval "$(brokers env)"
#   brokers log      NAME       print the log
#   brokers ctl      NAME ARG...  rabbitmqctl for rabbitmq or rabbitmq4
#   brokers tls                 make a throwaway CA, server and client certificate
#
# Names: kafka rabbitmq nats (the default), rabbitmq4.
# `rabbitmq` is Debian's package; `rabbitmq4` is a newer one in a folder of its own (root only).
# down, wipe and status without a name act on every broker that has data.
#
# A broker runs as a native process (Linux; root or what it needs already installed). Where that
# can't be and a docker engine answers, it runs in a container, as compose.yaml says; all commands
# are the same there.
#
# Everything listens on 127.0.0.1 only. Environment:
#
#   BROKERS_HOME    what was fetched          (default ${XDG_CACHE_HOME:-$HOME/.cache}/postrider/brokers)
#   BROKERS_DATA    data, logs, pid files     (default $BROKERS_HOME/data); another folder and
#                   other ports make a second, independent set
#   BROKERS_WAIT    seconds to wait until ready (60)
#   BROKERS_TLS=1   also listen with TLS, with the certificates of `brokers tls`
#   BROKERS_ENGINE  native or docker, where the choice above is not to be made by itself
#
#   KAFKA_PORT 9092         KAFKA_CONTROLLER_PORT 9094     KAFKA_TLS_PORT 9093
#   RABBITMQ_PORT 5672      RABBITMQ_TLS_PORT 5671         RABBITMQ_MANAGEMENT_PORT 15672
#   RABBITMQ_DIST_PORT 25672                               RABBITMQ_EPMD_PORT 14369
#   RABBITMQ4_PORT 5674     RABBITMQ4_TLS_PORT 5675        RABBITMQ4_MANAGEMENT_PORT 15674
#   RABBITMQ4_DIST_PORT 25674                              RABBITMQ4_EPMD_PORT 14370
#   NATS_PORT 4222 (TLS on the same port)                  NATS_MONITOR_PORT 8222
#
#   BROKERS_KAFKA_AUTOCREATE=1        topics are created on first use
#   BROKERS_KAFKA_HEAP=512m           largest heap of the JVM
#   BROKERS_RABBITMQ_MANAGEMENT=0     no management plugin (both RabbitMQ)
#   BROKERS_NATS_SYNC=always          JetStream fsyncs every write
#   BROKERS_KAFKA_SCRAM        users that Kafka is made with, as its storage tool takes them, with spaces between
#   BROKERS_RABBITMQ_PLUGINS   plugins that RabbitMQ has besides, with commas between
#   BROKERS_KAFKA_EXTRA, BROKERS_RABBITMQ_EXTRA, BROKERS_NATS_EXTRA
#                                     lines appended to the broker's configuration (native only)
#   KAFKA_VERSION, NATS_VERSION, RABBITMQ_VERSION, RABBITMQ4_VERSION   what to run; default: the file .env
#   KAFKA_LOG4J_VERSION, RABBITMQ4_SUITE                               what else to fetch
#
# `up` takes its settings from the environment and keeps them beside the data; every other
# command goes by what the last `up` kept. `up` on a broker that is up changes nothing.

# Kafka's class archive is made in a subshell with settings of its own, and functions are called by
# names put together (install_$name), both on purpose:
# shellcheck disable=SC2030,SC2031,SC2317
set -euo pipefail

BROKERS_HOME=${BROKERS_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/postrider/brokers}
BROKERS_DATA=${BROKERS_DATA:-$BROKERS_HOME/data}
BROKERS_WAIT=${BROKERS_WAIT:-60}
ROOT=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# The versions are those of the file `.env`, which `docker compose` reads as well; the environment takes precedence.
while IFS='=' read -r variable value; do
  [[ $variable != *_VERSION || -n ${!variable:-} ]] || printf -v "$variable" %s "$value"
done <"$ROOT/.env"
KAFKA_LOG4J_VERSION=${KAFKA_LOG4J_VERSION:-2.25.5}
RABBITMQ4_SUITE=${RABBITMQ4_SUITE:-trixie}

ALL=(kafka rabbitmq nats rabbitmq4)
DEFAULT=(kafka rabbitmq nats)
TLS_DIR=$BROKERS_HOME/tls
KAFKA_DIR=$BROKERS_HOME/kafka-$KAFKA_VERSION
NATS_DIR=$BROKERS_HOME/nats-$NATS_VERSION
RABBITMQ4_ROOT=$BROKERS_HOME/rabbitmq4-$RABBITMQ4_SUITE
COMPOSE_FILE=$ROOT/compose.yaml

say() { printf 'brokers: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '3,/^$/{s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
dir() { printf '%s/%s' "$BROKERS_DATA" "$1"; }
have() { command -v "$1" >/dev/null; }
# locked FILE COMMAND...: one at a time, over all processes.
locked() {
  local file=$1
  shift
  (
    if have flock; then flock 8; fi
    "$@"
  ) 8>"$file"
}

((BASH_VERSINFO[0] >= 5)) || die "needs bash 5 or newer, this is $BASH_VERSION"

# ---------------------------------------------------------------- settings

declare -A S # the settings of the broker at hand, by short name

# One line a setting: short name, variable, default.
settings() {
  local v=${1^^}
  case $1 in
    kafka) cat <<END
port KAFKA_PORT 9092
controller KAFKA_CONTROLLER_PORT 9094
tls_port KAFKA_TLS_PORT 9093
tls BROKERS_TLS 0
autocreate BROKERS_KAFKA_AUTOCREATE 0
heap BROKERS_KAFKA_HEAP 512m
version KAFKA_VERSION $KAFKA_VERSION
END
      ;;
    rabbitmq | rabbitmq4)
      local n=72 e=14369
      [[ $1 == rabbitmq ]] || { n=74 e=14370; }
      cat <<END
port ${v}_PORT 56$n
tls_port ${v}_TLS_PORT $((n == 72 ? 5671 : 5675))
management_port ${v}_MANAGEMENT_PORT 156$n
dist ${v}_DIST_PORT 256$n
epmd ${v}_EPMD_PORT $e
tls BROKERS_TLS 0
management BROKERS_RABBITMQ_MANAGEMENT 1
END
      ;;
    nats) cat <<END
port NATS_PORT 4222
monitor NATS_MONITOR_PORT 8222
tls BROKERS_TLS 0
sync BROKERS_NATS_SYNC default
version NATS_VERSION $NATS_VERSION
END
      ;;
  esac
  echo engine BROKERS_ENGINE auto
}

# settings_now NAME: from the environment. settings_kept NAME: those of the last `up`, if any.
settings_now() {
  local key var default
  S=()
  while read -r key var default; do S[$key]=${!var:-$default}; done < <(settings "$1")
}
settings_kept() {
  local key value
  settings_now "$1"
  [[ -f $(dir "$1")/settings ]] || return 0
  while IFS='=' read -r key value; do S[$key]=$value; done <"$(dir "$1")/settings"
}
keep_settings() {
  local key
  for key in "${!S[@]}"; do printf '%s=%s\n' "$key" "${S[$key]}"; done >"$(dir "$1")/settings"
}

url() {
  case $1 in
    kafka) echo "kafka://127.0.0.1:${S[port]}" ;;
    rabbitmq*) echo "amqp://guest:guest@127.0.0.1:${S[port]}/%2f" ;;
    nats) echo "nats://127.0.0.1:${S[port]}" ;;
  esac
}
tls_url() {
  case $1 in
    kafka) echo "kafka+ssl://127.0.0.1:${S[tls_port]}" ;;
    rabbitmq*) echo "amqps://guest:guest@127.0.0.1:${S[tls_port]}/%2f" ;;
    nats) echo "tls://127.0.0.1:${S[port]}" ;;
  esac
}
exports() {
  printf "export %s_URL='%s'\n" "${1^^}" "$(url "$1")"
  if [[ ${S[tls]:-0} == 1 ]]; then printf "export %s_TLS_URL='%s'\n" "${1^^}" "$(tls_url "$1")"; fi
  if [[ ${S[management]:-0} == 1 ]]; then
    printf "export %s_MANAGEMENT_URL='http://guest:guest@127.0.0.1:%s'\n" "${1^^}" "${S[management_port]}"
  fi
  if [[ $1 == nats ]]; then printf "export NATS_MONITOR_URL='http://127.0.0.1:%s'\n" "${S[monitor]}"; fi
}

# ---------------------------------------------------------------- engines

# lacks NAME: why it can't run as a native process here, a line each; nothing where it can.
lacks() {
  local tool
  [[ $(uname -s) == Linux ]] || echo "native brokers need Linux"
  for tool in setsid flock ps; do have "$tool" || echo "there is no $tool"; done
  if [[ $(id -u) == 0 ]] && have apt-get; then
    # the rest comes by apt, but for Go: Debian's may be too old
    [[ $1 != nats || -x $NATS_DIR/nats-server ]] || have go || echo "nats-server is built by Go, and there is no go"
    return
  fi
  case $1 in
    kafka)
      have java || echo "there is no java, and installing it needs root and apt-get"
      [[ -d $KAFKA_DIR/libs ]] || have mvn || echo "there is no mvn, and installing it needs root and apt-get"
      ;;
    rabbitmq)
      compgen -G '/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server' >/dev/null ||
        echo "rabbitmq-server is not installed, and installing it needs root and apt-get"
      ;;
    rabbitmq4) echo "rabbitmq4 runs in a chroot, which needs root" ;;
    nats) [[ -x $NATS_DIR/nats-server ]] || have go || echo "nats-server is built by Go, and there is no go" ;;
  esac
}
docker_answers() { have docker && docker compose version && timeout 10 docker info; } &>/dev/null

# engine NAME: native or docker. It is chosen once for each broker: asking docker takes time.
declare -A ENGINE
engine() {
  [[ -n ${ENGINE[$1]:-} ]] || ENGINE[$1]=$(choose_engine "$1")
  S[engine]=${ENGINE[$1]}
}
choose_engine() {
  local why
  case ${S[engine]} in
    native | docker) echo "${S[engine]}" && return ;;
    auto) ;;
    *) die "BROKERS_ENGINE is native, docker or auto, not ${S[engine]}" ;;
  esac
  why=$(lacks "$1")
  if [[ -z $why ]]; then
    echo native
  elif docker_answers; then
    echo docker
  else
    die "$1 can't run here: ${why//$'\n'/; }; and no docker engine with \`docker compose\` answers"
  fi
}
contained() { [[ ${S[engine]:-} == docker ]]; }

# Containers and volumes of one set of brokers bear the name of one compose project.
project() { printf 'postrider-%s' "$(printf %s "$BROKERS_DATA" | cksum | cut -d ' ' -f 1)"; }
# compose NAME ARG...: `docker compose` with the settings of NAME, and what its configuration adds.
compose() {
  local name=$1 key var files=(-f "$COMPOSE_FILE")
  shift
  [[ ! -f $(dir "$name")/compose.yaml ]] || files+=(-f "$(dir "$name")/compose.yaml")
  (
    while read -r key var _; do export "$var=${S[$key]}"; done < <(settings "$name")
    docker compose --progress quiet -p "$(project)" "${files[@]}" "$@"
  )
}
# container NAME: its state as docker tells it; nothing where there is none.
container() {
  local id
  id=$(compose "$1" ps --all --quiet "$1" 2>/dev/null)
  [[ -z $id ]] || docker inspect --format '{{.State.Status}}' "$id"
}

# ---------------------------------------------------------------- processes

# A process is known by its pid and its start time, so that a reused pid is never taken for ours.
# Prints nothing for a process that is gone or a zombie. (A zombie with more than one thread is
# still dying: it holds its ports until the last thread is gone.)
started() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  read -ra stat <<<"${stat##*) }"
  [[ ${stat[0]} == Z && ${stat[17]} -le 1 ]] || echo "${stat[19]}"
}
# pid_of FILE: the pid that FILE records, if that very process is alive.
pid_of() {
  local pid since
  [[ -f $1 ]] && read -r pid since <"$1" || return 1
  [[ -n $since && $(started "$pid") == "$since" ]] && echo "$pid"
}
alive() {
  if contained; then
    [[ $(container "$1") == @(running|paused) ]]
  else
    pid_of "$(dir "$1")/pid" >/dev/null
  fi
}
paused() {
  if contained; then
    [[ $(container "$1") == paused ]]
  else
    grep -q '^State:.T' "/proc/$(pid_of "$(dir "$1")/pid")/status" 2>/dev/null
  fi
}

# spawn PIDFILE LOG COMMAND...: run detached, in a session of its own; the pid is the command's own.
spawn() {
  local pidfile=$1 log=$2
  shift 2
  rm -f "$pidfile"
  setsid "$@" </dev/null >>"$log" 2>&1 8>&- 9>&- &
  local pid=$!
  disown "$pid"
  printf '%s %s\n' "$pid" "$(started "$pid")" >"$pidfile"
}

# family PID: it and all its descendants, itself first.
family() {
  ps -e -o pid=,ppid= | awk -v top="$1" '
    { parent[$1] = $2 }
    END {
      print top
      for (pid in parent) {
        for (p = parent[pid]; p > 1 && p != top; p = parent[p]);
        if (p == top) print pid
      }
    }'
}
# signal SIGNAL PIDFILE: to the process and all its descendants.
signal() {
  local pid pids
  pid=$(pid_of "$2") || return 0
  mapfile -t pids < <(family "$pid")
  kill "-$1" "${pids[@]}" 2>/dev/null || true # some helpers end by themselves
}
# stopped PIDFILE SECONDS: wait until no thread of the process runs. A signal to stop takes effect only
# when one of the threads gets to run, and until then the others go on.
stopped() {
  local pid states end=$((SECONDS + $2))
  pid=$(pid_of "$1") || return 0
  while
    # a thread may end while it is looked at
    states=$(cat "/proc/$pid/task/"*/status 2>/dev/null || true)
    grep '^State:' <<<"$states" | grep -v 'T (stopped)\|Z (zombie)' >/dev/null
  do
    ((SECONDS < end)) || return 1
    sleep 0.01
  done
}
# gone PIDFILE SECONDS: wait until the process has ended.
gone() {
  local end=$((SECONDS + $2))
  while pid_of "$1" >/dev/null; do
    ((SECONDS < end)) || return 1
    sleep 0.05
  done
  rm -f "$1"
}
stop() {
  local d pid
  d=$(dir "$1")
  if contained; then
    alive "$1" || return 0
    resume "$1"
    compose "$1" stop "$1"
    say "$1 stopped"
    return
  fi
  if pid=$(pid_of "$d/pid"); then
    signal CONT "$d/pid"
    kill -TERM "$pid" # in good order: only the broker itself is told, its helpers follow
    if ! gone "$d/pid" 30; then
      say "$1 did not stop in 30 s, killing it"
      crash "$1"
    fi
    say "$1 stopped"
  fi
  signal TERM "$d/epmd.pid"
  gone "$d/epmd.pid" 5 || signal KILL "$d/epmd.pid"
}
crash() {
  if contained; then
    compose "$1" kill --signal KILL "$1"
    return
  fi
  signal KILL "$(dir "$1")/pid"
  gone "$(dir "$1")/pid" 10 || die "$1 does not die"
}
pause() {
  if contained; then
    compose "$1" pause "$1"
  else
    signal STOP "$(dir "$1")/pid"
    stopped "$(dir "$1")/pid" 10 || die "$1 does not stop"
  fi
}
resume() {
  if ! contained; then
    signal CONT "$(dir "$1")/pid"
  elif paused "$1"; then
    compose "$1" unpause "$1"
  fi
}
wipe() {
  stop "$1"
  if contained; then
    compose "$1" rm --stop --force --volumes "$1"
    docker volume rm --force "$(project)_$1" >/dev/null
  fi
  rm -rf "$(dir "$1")"
}
log() {
  if contained; then compose "$1" logs --no-color --no-log-prefix "$1"; else cat "$(dir "$1")/log"; fi
}

# ---------------------------------------------------------------- ready?

# ask PORT BYTES COUNT: send BYTES (printf escapes), print COUNT bytes of the answer in hex.
ask() {
  # shellcheck disable=SC2016
  timeout 2 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" && printf "$2" >&3 &&
    head -c "$3" <&3 | od -An -tx1 -v | tr -d " \n"' _ "$@" 2>/dev/null || true
}
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

ready() {
  local a
  case $1 in
    # a Metadata request, version 1, of no topic: the answer must name a broker
    kafka)
      a=$(ask "${S[port]}" '\x00\x00\x00\x0e\x00\x03\x00\x01\x00\x00\x00\x07\xff\xff\x00\x00\x00\x00' 12)
      [[ $a == ????????00000007* && $a != *00000000 ]]
      ;;
    # the AMQP 0-9-1 greeting: the answer must be connection.start
    rabbitmq*)
      a=$(ask "${S[port]}" 'AMQP\x00\x00\x09\x01' 11)
      [[ $a == 010000????????000a000a ]]
      ;;
    # /healthz is 200 once JetStream has recovered
    nats)
      a=$(ask "${S[monitor]}" 'GET /healthz HTTP/1.0\r\n\r\n' 12)
      [[ $a == 485454502f312e3?20323030 ]]
      ;;
  esac
}

# await SINCE NAME...: until each is ready; tells the time since SINCE (an EPOCHREALTIME).
await() {
  local end=$((SECONDS + BROKERS_WAIT)) since=${1/[.,]/} us name waiting
  shift
  while (($#)); do
    waiting=()
    for name in "$@"; do
      settings_kept "$name"
      if ready "$name"; then
        us=$((${EPOCHREALTIME/[.,]/} - since))
        say "$name ready after $((us / 1000000)).$(printf '%02d' $((us / 10000 % 100))) s"
      elif alive "$name"; then
        waiting+=("$name")
      else
        log "$name" 2>&1 | tail -n 20 >&2
        die "$name ended while starting; all it said: brokers log $name"
      fi
    done
    ((SECONDS < end || ${#waiting[@]} == 0)) ||
      die "not ready after $BROKERS_WAIT s: ${waiting[*]}; what they said: brokers log NAME"
    set -- "${waiting[@]}"
    (($# == 0)) || sleep 0.05
  done
}

# ---------------------------------------------------------------- install

apt_install() {
  [[ $(id -u) == 0 ]] || die "needs root to install: apt-get install $*"
  locked "$BROKERS_HOME/lock-apt" apt_install_locked "$@"
}
apt_install_locked() {
  apt-get update -qq
  # RUNLEVEL=1 keeps a package from starting its own service on the default port.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
need() { have "$1" || apt_install "$2"; }

install_kafka() {
  need java default-jre-headless
  if [[ ! -d $KAFKA_DIR/libs ]]; then
    need mvn maven
    say "fetching Kafka $KAFKA_VERSION"
    rm -rf "$KAFKA_DIR.new"
    mkdir -p "$KAFKA_DIR.new"
    # The log4j binding is no dependency of kafka_2.13: without it Kafka logs nothing.
    cat >"$KAFKA_DIR.new/pom.xml" <<END
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-broker</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId><version>$KAFKA_LOG4J_VERSION</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version>
    </dependency>
  </dependencies>
</project>
END
    mvn -B -q -f "$KAFKA_DIR.new/pom.xml" \
      org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
      -DoutputDirectory=libs -DincludeScope=runtime >"$BROKERS_HOME/maven.log" 2>&1 ||
      die "Maven failed; see $BROKERS_HOME/maven.log"
    rm -rf "$KAFKA_DIR"
    mv "$KAFKA_DIR.new" "$KAFKA_DIR"
  fi
  [[ -f $KAFKA_DIR/classes.jsa ]] || kafka_archive
}

# A start and stop on scratch data, to write an archive of the loaded classes: the JVM maps it at
# every later start, which takes less than half the time. Optional: without it Kafka only starts slower.
kafka_archive() (
  say "Kafka: writing the class archive"
  BROKERS_DATA=$(mktemp -d)
  trap 'stop kafka; rm -rf "$BROKERS_DATA"' EXIT
  local port=$((20000 + RANDOM % 10000))
  while listening "$port" || listening $((port + 1)); do port=$((port + 2)); done
  settings_now kafka
  S[port]=$port S[controller]=$((port + 1)) S[tls]=0
  configure_kafka
  keep_settings kafka
  launch_kafka kafka -XX:ArchiveClassesAtExit="$KAFKA_DIR/classes.jsa" -Xlog:cds=off -Xlog:cds+dynamic=off
  await "$EPOCHREALTIME" kafka
)

install_nats() {
  [[ -x $NATS_DIR/nats-server ]] && return
  have go || die "nats needs a Go toolchain (Debian's may be too old for nats-server $NATS_VERSION)"
  say "building nats-server $NATS_VERSION"
  GOBIN=$NATS_DIR CGO_ENABLED=0 go install "github.com/nats-io/nats-server/v2@v$NATS_VERSION"
}

install_rabbitmq() { compgen -G '/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server' >/dev/null || apt_install rabbitmq-server; }

install_rabbitmq4() {
  [[ -d $RABBITMQ4_ROOT ]] && return
  [[ $(id -u) == 0 ]] || die "rabbitmq4 needs root: it runs in a chroot"
  need debootstrap debootstrap
  local mirror
  # the mirror that apt uses for Debian itself, whichever that is
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
  say "unpacking Debian $RABBITMQ4_SUITE with rabbitmq-server"
  rm -rf "$RABBITMQ4_ROOT.new"
  mkdir -p "$RABBITMQ4_ROOT.new"
  debootstrap --variant=minbase --include=rabbitmq-server "$RABBITMQ4_SUITE" "$RABBITMQ4_ROOT.new" ${mirror:+"$mirror"} \
    >"$BROKERS_HOME/debootstrap.log" 2>&1 || die "debootstrap failed; see $BROKERS_HOME/debootstrap.log"
  rm -rf "$RABBITMQ4_ROOT.new"/var/cache/apt/archives/*.deb
  mkdir -p "$RABBITMQ4_ROOT.new/broker"
  mv "$RABBITMQ4_ROOT.new" "$RABBITMQ4_ROOT"
}


version() {
  if contained; then
    docker inspect --format '{{.Config.Image}}' "$(compose "$1" ps --all --quiet "$1")" 2>/dev/null | sed 's/.*://' || echo '?'
    return
  fi
  case $1 in
    kafka) echo "${S[version]}" ;;
    nats) echo "${S[version]}" ;;
    rabbitmq) compgen -G '/usr/lib/rabbitmq/lib/rabbitmq_server-*' | sed 's/.*-//' | head -n 1 ;;
    rabbitmq4) compgen -G "$RABBITMQ4_ROOT/usr/lib/rabbitmq/lib/rabbitmq_server-*" | sed 's/.*-//' | head -n 1 ;;
  esac 2>/dev/null || echo '?'
}

# ---------------------------------------------------------------- Kafka

configure_kafka() {
  local d listeners
  d=$(dir kafka)
  mkdir -p "$d"
  cat >"$d/log4j2.xml" <<'END'
<Configuration status="error" shutdownHook="disable">
  <Appenders>
    <Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="info"/>
    <Root level="warn"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
END
  listeners=PLAINTEXT://127.0.0.1:${S[port]}
  [[ ${S[tls]} == 1 ]] && listeners+=,SSL://127.0.0.1:${S[tls_port]}
  {
    cat <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:${S[controller]}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners=$listeners,CONTROLLER://127.0.0.1:${S[controller]}
advertised.listeners=$listeners
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT
log.dirs=$d/data
auto.create.topics.enable=$([[ ${S[autocreate]} == 1 ]] && echo true || echo false)
num.partitions=3
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=5
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=5
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=5
group.initial.rebalance.delay.ms=0
# After a crash the broker may register again only when its old session has run out (default 9 s).
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
END
    if [[ ${S[tls]} == 1 ]]; then
      cat <<END
ssl.keystore.type=PEM
ssl.keystore.location=$d/tls/server-bundle.pem
ssl.truststore.type=PEM
ssl.truststore.location=$d/tls/ca.pem
ssl.client.auth=requested
END
    fi
    printf '%s\n' "${BROKERS_KAFKA_EXTRA:-}"
  } >"$d/server.properties"
  if [[ ! -f $d/data/meta.properties ]]; then
    local id users=()
    # each as it says it itself: SCRAM-SHA-256=[name=ann,password=secret]
    for id in ${BROKERS_KAFKA_SCRAM:-}; do users+=(--add-scram "$id"); done
    # a cluster id is 16 bytes in URL base64 and must not begin with a dash
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_')
    java -XX:TieredStopAtLevel=1 "-Dlog4j2.configurationFile=$d/log4j2.xml" \
      -cp "$KAFKA_DIR/libs/*" kafka.tools.StorageTool format \
      -t "k${id:1:21}" -c "$d/server.properties" "${users[@]}" >>"$d/log" 2>&1 ||
      die "Kafka storage could not be formatted; see $d/log"
  fi
}

# launch_kafka NAME [JVM-OPTION...]
launch_kafka() {
  local d libs=$BROKERS_HOME/kafka-${S[version]} options=("${@:2}")
  d=$(dir kafka)
  if [[ $# == 1 && -f $libs/classes.jsa ]]; then options=("-XX:SharedArchiveFile=$libs/classes.jsa"); fi
  spawn "$d/pid" "$d/log" java -Xms128m "-Xmx${S[heap]}" -XX:+UseSerialGC -Djava.awt.headless=true \
    "${options[@]}" "-Dlog4j2.configurationFile=$d/log4j2.xml" \
    -cp "$libs/libs/*" kafka.Kafka "$d/server.properties"
}

# ---------------------------------------------------------------- RabbitMQ

# rabbitmq_run NAME COMMAND...: run one of its programs, in its environment and, for rabbitmq4, in its chroot.
# The caller sets how=(spawn PIDFILE LOG) or how=() to run in the foreground.
rabbitmq_run() {
  local name=$1 d view
  shift
  d=$(dir "$name") view=$d
  [[ $name == rabbitmq ]] || view=/broker # the data as the chroot sees it
  local variables=(
    HOME="$view" # where Erlang looks for its cookie
    LANG=C.UTF-8
    ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="${S[epmd]}"
    ERL_CRASH_DUMP_SECONDS=0
    RABBITMQ_NODENAME=broker@localhost
    RABBITMQ_CONF_ENV_FILE=/dev/null
    RABBITMQ_CONFIG_FILE="$view/rabbitmq.conf"
    RABBITMQ_ADVANCED_CONFIG_FILE="$view/advanced.config"
    RABBITMQ_ENABLED_PLUGINS_FILE="$view/enabled_plugins"
    RABBITMQ_GENERATED_CONFIG_DIR="$view/generated"
    RABBITMQ_MNESIA_BASE="$view/data" RABBITMQ_LOG_BASE="$view/logs" RABBITMQ_LOGS=-
    RABBITMQ_PID_FILE="$view/server.pid"
    RABBITMQ_DIST_PORT="${S[dist]}"
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
    RABBITMQ_CTL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
    detached=1 # lets rabbitmq-server exec Erlang, so that the pid is the broker's own
  )
  if [[ $name == rabbitmq ]]; then
    "${how[@]}" env "${variables[@]}" PATH="$(rabbitmq_sbin):$PATH" "$@"
  else
    # The mounts live in a namespace of the broker's own and go with it.
    # shellcheck disable=SC2016
    "${how[@]}" unshare --mount --propagation private -- sh -ec '
      root=$1 data=$2; shift 2
      mount --rbind /proc "$root/proc"
      mount --rbind /dev "$root/dev"
      mount --bind "$data" "$root/broker"
      exec chroot "$root" "$@"' sh "$RABBITMQ4_ROOT" "$d" \
      env "${variables[@]}" PATH="$(rabbitmq_sbin "$RABBITMQ4_ROOT"):/usr/sbin:/usr/bin:/sbin:/bin" "$@"
  fi
}
rabbitmq_sbin() {
  local sbin
  sbin=$(compgen -G "${1:-}/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin" | head -n 1)
  echo "${sbin#"${1:-}"}"
}

configure_rabbitmq() {
  local name=$1 d view plugins=
  d=$(dir "$name") view=$d
  [[ $name == rabbitmq ]] || view=/broker
  mkdir -p "$d"
  if [[ ! -f $d/.erlang.cookie ]]; then
    (umask 077 && head -c 15 /dev/urandom | base64 | tr -dc 'A-Za-z0-9' >"$d/.erlang.cookie")
    chmod 400 "$d/.erlang.cookie"
  fi
  plugins=${BROKERS_RABBITMQ_PLUGINS:-}
  if [[ ${S[management]} == 1 ]]; then plugins+=${plugins:+,}rabbitmq_management; fi
  echo "[$plugins]." >"$d/enabled_plugins"
  {
    cat <<END
listeners.tcp.1 = 127.0.0.1:${S[port]}
log.console = true
log.console.level = info
log.file = false
disk_free_limit.absolute = 50MB
END
    if [[ ${S[management]} == 1 ]]; then
      echo "management.tcp.ip = 127.0.0.1"
      echo "management.tcp.port = ${S[management_port]}"
    fi
    if [[ ${S[tls]} == 1 ]]; then
      cat <<END
listeners.ssl.1 = 127.0.0.1:${S[tls_port]}
ssl_options.cacertfile = $view/tls/ca.pem
ssl_options.certfile = $view/tls/server.pem
ssl_options.keyfile = $view/tls/server-key.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
END
    fi
    printf '%s\n' "${BROKERS_RABBITMQ_EXTRA:-}"
  } >"$d/rabbitmq.conf"
}

# Erlang nodes find each other through epmd, which Erlang would start as a daemon for the whole
# machine. Here each broker has its own, on its own port, ended with it by `down`.
launch_rabbitmq() {
  local name=$1 d how
  d=$(dir "$name")
  if ! pid_of "$d/epmd.pid" >/dev/null; then
    how=(spawn "$d/epmd.pid" "$d/log")
    rabbitmq_run "$name" epmd -address 127.0.0.1 -port "${S[epmd]}"
    local tries=50
    until listening "${S[epmd]}"; do
      ((tries-- > 0)) || die "$name: epmd does not listen; see $d/log"
      sleep 0.05
    done
  fi
  how=(spawn "$d/pid" "$d/log")
  rabbitmq_run "$name" rabbitmq-server
}
configure_rabbitmq4() { configure_rabbitmq "$@"; }
launch_rabbitmq4() { launch_rabbitmq "$@"; }

# ---------------------------------------------------------------- NATS

# In a container the ports are the usual ones, mapped by compose.yaml, and the data is a volume.
configure_nats() {
  local d view data listen sync=
  d=$(dir nats) view=$d data=$d/data
  listen="listen: 127.0.0.1:${S[port]}"$'\n'"http: 127.0.0.1:${S[monitor]}"
  mkdir -p "$d"
  if contained; then
    view=/broker data=/data
    listen=$'listen: 0.0.0.0:4222\nhttp: 0.0.0.0:8222'
    cat >"$d/compose.yaml" <<END
services:
  nats:
    command: ["-c", "/broker/nats.conf"]
    volumes: ["$d:/broker:ro"]
END
  fi
  [[ ${S[sync]} == default ]] || sync="sync_interval: ${S[sync]}"
  {
    cat <<END
server_name: broker
$listen
jetstream {
  store_dir: "$data"
  $sync
}
END
    if [[ ${S[tls]} == 1 ]]; then
      cat <<END
tls {
  cert_file: "$view/tls/server.pem"
  key_file: "$view/tls/server-key.pem"
  ca_file: "$view/tls/ca.pem"
}
allow_non_tls: true
END
    fi
    printf '%s\n' "${BROKERS_NATS_EXTRA:-}"
  } >"$d/nats.conf"
}
launch_nats() {
  local d
  d=$(dir nats)
  spawn "$d/pid" "$d/log" "$BROKERS_HOME/nats-${S[version]}/nats-server" -c "$d/nats.conf"
}

# ---------------------------------------------------------------- TLS

make_tls() {
  [[ -f $TLS_DIR/server-bundle.pem ]] && return
  need openssl openssl
  local t=$TLS_DIR.new who
  rm -rf "$t"
  mkdir -p "$t"
  (
    umask 077
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj '/CN=brokers throwaway CA' \
      -keyout "$t/ca-key.pem" -out "$t/ca.pem"
    for who in server client; do
      openssl req -newkey rsa:2048 -nodes -subj "/CN=brokers $who" -keyout "$t/$who-key.pem" -out "$t/$who.csr"
      openssl x509 -req -in "$t/$who.csr" -CA "$t/ca.pem" -CAkey "$t/ca-key.pem" -CAcreateserial -days 3650 \
        -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=%sAuth\n' "$who") \
        -out "$t/$who.pem"
    done
    cat "$t/server-key.pem" "$t/server.pem" "$t/ca.pem" >"$t/server-bundle.pem" # as Kafka wants it
  ) 2>/dev/null
  rm -rf "$TLS_DIR" "$t"/*.csr "$t"/*.srl
  mv "$t" "$TLS_DIR"
}

# ---------------------------------------------------------------- commands

# begin NAME: launch, unless a port is taken by something else.
begin() {
  local key tries
  for key in port controller tls_port management_port monitor dist; do
    [[ -n ${S[$key]:-} ]] || continue
    ! contained || [[ $key == @(port|management_port|monitor) ]] || continue
    [[ $key != tls_port || ${S[tls]} == 1 ]] || continue
    [[ $key != management_port || ${S[management]} == 1 ]] || continue
    tries=40
    while listening "${S[$key]}"; do
      ((tries-- > 0)) || die "$1: port ${S[$key]} is taken by another process"
      sleep 0.05
    done
  done
  if contained; then compose "$1" up --detach "$1"; else "launch_$1" "$1"; fi
}

install() {
  if contained; then
    [[ ${S[tls]} != 1 || $1 == nats ]] || die "$1 listens with TLS only as a native process"
    compose "$1" pull --quiet "$1"
  else
    locked "$BROKERS_HOME/lock-$1" "install_$1"
    check_version "$1"
  fi
}
# Warns when a distribution has another version than the one that is tested.
check_version() {
  local tested found
  found=$(version "$1")
  tested=$(sed -n "s/^${1^^}_VERSION=//p" "$ROOT/.env")
  [[ $found == "$tested"* ]] || say "$1 is version $found here; postrider is tested on $tested"
}
# install_all NAME...: fetches all of them at the same time; fails if one of them failed.
install_all() {
  local name pid pids=() failed=0
  for name in "$@"; do
    settings_now "$name"
    engine "$name"
    install "$name" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  ((failed == 0)) || die "not all brokers could be fetched; see above"
}

up() {
  local name launched=() since
  for name in "$@"; do
    settings_kept "$name"
    if alive "$name"; then continue; fi
    settings_now "$name"
    engine "$name"
    mkdir -p "$(dir "$name")"
    if [[ ${S[tls]:-0} == 1 ]]; then
      locked "$BROKERS_HOME/lock" make_tls
      rm -rf "$(dir "$name")/tls"
      cp -r "$TLS_DIR" "$(dir "$name")/tls"
    fi
    launched+=("$name")
  done
  install_all "${launched[@]}"
  since=$EPOCHREALTIME
  for name in "${launched[@]}"; do
    settings_now "$name"
    engine "$name"
    if ! contained || [[ $name == nats ]]; then "configure_$name" "$name"; fi
    keep_settings "$name"
    begin "$name"
  done
  await "$since" "${launched[@]}"
  for name in "$@"; do
    settings_kept "$name"
    exports "$name"
  done
}

start() {
  local name since
  for name in "$@"; do
    settings_kept "$name"
    [[ -f $(dir "$name")/settings ]] || die "$name has no data; use: brokers up $name"
    if alive "$name"; then continue; fi
    since=$EPOCHREALTIME
    begin "$name"
    await "$since" "$name"
    exports "$name"
  done
}

status() {
  local name state pid memory rows=() up=0
  for name in "$@"; do
    settings_kept "$name"
    state=down pid=- memory=-
    if alive "$name"; then
      up=1
      if paused "$name"; then state=paused; elif ready "$name"; then state=ready; else state=starting; fi
      if ! contained && pid=$(pid_of "$(dir "$name")/pid"); then
        memory=$(awk '/^VmRSS/ {printf "%d MB", $2 / 1024}' "/proc/$pid/status")
      fi
    fi
    rows+=("$(printf '%-10s %-8s %-8s %-8s %-8s %s' \
      "$name" "$state" "$pid" "$memory" "$(version "$name")" "$(url "$name")")")
  done
  if ((${#rows[@]} > 0)); then
    printf '%-10s %-8s %-8s %-8s %-8s %s\n' NAME STATE PID MEMORY VERSION URL
    printf '%s\n' "${rows[@]}"
  fi
  ((up == 1)) || echo "no broker is up${ASKED:+ among $ASKED}; to start one: cargo xtask brokers up NAME (${ALL[*]})"
}

known() {
  local name
  for name in "$@"; do
    [[ " ${ALL[*]} " == *" $name "* ]] || die "unknown broker $name; known: ${ALL[*]}"
  done
}
with_data() {
  local name
  for name in "${ALL[@]}"; do
    if [[ -d $(dir "$name") ]]; then echo "$name"; fi
  done
}

main() {
  local command=${1:-help} name
  (($# == 0)) || shift
  local names=("$@")
  case $command in
    install | up) (($#)) || names=("${DEFAULT[@]}") ;;
    down | wipe | status) ASKED=$* && (($#)) || mapfile -t names < <(with_data) ;;
    env) (($#)) || mapfile -t names < <(printf '%s\n' "${DEFAULT[@]}" && with_data | grep -vxF "$(printf '%s\n' "${DEFAULT[@]}")") ;;
    kill | start | pause | resume | log | ctl) (($#)) || die "$command needs a name: ${ALL[*]}" ;;
    tls) ;;
    help | -h | --help) usage && return ;;
    *) usage >&2 && exit 2 ;;
  esac
  [[ $command == ctl ]] && names=("$1")
  known "${names[@]}"

  mkdir -p "$BROKERS_HOME" "$BROKERS_DATA"
  # One command at a time changes a set; what is fetched has a lock of its own, in BROKERS_HOME.
  case $command in
    up | down | wipe | kill | start)
      exec 9>"$BROKERS_DATA/lock"
      if have flock; then flock 9; fi
      ;;
  esac

  case $command in
    up | start | status) "$command" "${names[@]}" ;;
    install) install_all "${names[@]}" ;;
    tls)
      locked "$BROKERS_HOME/lock" make_tls
      echo "$TLS_DIR"
      ;;
    log)
      settings_kept "${names[0]}"
      log "${names[0]}"
      ;;
    ctl)
      [[ $1 == rabbitmq* ]] || die "ctl is for rabbitmq and rabbitmq4"
      settings_kept "$1"
      local how=()
      if contained; then
        compose "$1" exec -T "$1" rabbitmqctl "${@:2}"
      else
        rabbitmq_run "$1" rabbitmqctl "${@:2}"
      fi
      ;;
    *)
      for name in "${names[@]}"; do
        settings_kept "$name"
        case $command in
          env) exports "$name" ;;
          down) stop "$name" ;;
          wipe) wipe "$name" ;;
          kill | pause)
            alive "$name" || die "$name is not up"
            if [[ $command == kill ]]; then crash "$name"; else pause "$name"; fi
            ;;
          resume) resume "$name" ;;
        esac
      done
      ;;
  esac
  if [[ $command == env && -f $TLS_DIR/ca.pem ]]; then
    printf "export BROKERS_TLS_CA='%s'\nexport BROKERS_TLS_CERT='%s'\nexport BROKERS_TLS_KEY='%s'\n" \
      "$TLS_DIR/ca.pem" "$TLS_DIR/client.pem" "$TLS_DIR/client-key.pem"
  fi
}

# read whole before it runs, so that the script may be edited meanwhile
{
  main "$@"
  exit
}

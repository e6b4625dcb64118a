#!/usr/bin/env bash
# The services of infra/compose.yaml without containers, on this machine, on the loopback interface only:
# PostgreSQL, a Prefect server and an MLflow server that keep their data in it, and a Prefect worker.
#
#   infra/local-stack.sh up       start what is not running, return when all of it answers
#   infra/local-stack.sh down     end all of it; the data stays
#   infra/local-stack.sh status   one line per service; exit status 1 unless all of them run
#   infra/local-stack.sh env      what a shell needs to use it:  eval "$(infra/local-stack.sh env)"
#
# `up` makes two secrets and keeps them in the stack's directory, readable by you alone: `password`, of the database, and
# `prefect-secret`, which Prefect's API asks everybody for, and its UI too. Programs are given them by their environment only.
#
# Settings, from the environment; `up` keeps those that name addresses in the stack's directory for later calls:
#   POISE_STACK_DIR       data, logs and process ids             .local-stack beside infra/
#   POISE_POSTGRES_PORT   55432
#   POISE_PREFECT_PORT    4200
#   POISE_MLFLOW_PORT     5000
#   POISE_ARTIFACTS       where MLflow keeps artifacts           a folder in POISE_STACK_DIR; or s3://bucket/prefix, with
#                                                                MLFLOW_S3_ENDPOINT_URL and AWS_* as boto3 reads them
#   POISE_WORK_POOL       pool of the worker; empty for none     poise
#   POISE_BIN             folder of prefect, mlflow, python      .venv/bin beside infra/
#   POISE_POSTGRES_BIN    folder of initdb and pg_ctl            the newest below /usr/lib/postgresql
#   POISE_POSTGRES_USER   who runs PostgreSQL if you are root    postgres
#   POISE_START_SECONDS   how long one service may take          180
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DIR=${POISE_STACK_DIR:-$ROOT/.local-stack}
BIN=${POISE_BIN:-$ROOT/.venv/bin}
POSTGRES_USER=${POISE_POSTGRES_USER:-postgres}
SECONDS_ALLOWED=${POISE_START_SECONDS:-180}
HOST=127.0.0.1
SETTINGS=(POSTGRES_PORT PREFECT_PORT MLFLOW_PORT WORK_POOL ARTIFACTS)
SECRET=$DIR/prefect-secret
export DO_NOT_TRACK=true PREFECT_HOME=$DIR/prefect

fail() {
    echo "local-stack: $*" >&2
    exit 1
}

say() {
    echo "local-stack: $*" >&2
}

# Settings: the environment, else what the last `up` used, else the default.
read_settings() {
    local name given
    local -A default=([POSTGRES_PORT]=55432 [PREFECT_PORT]=4200 [MLFLOW_PORT]=5000 [WORK_POOL]=poise [ARTIFACTS]=$DIR/mlartifacts)
    for name in "${SETTINGS[@]}"; do
        given=POISE_$name
        if [[ -n ${!given+set} ]]; then
            printf -v "$name" %s "${!given}"
        elif [[ -f $DIR/settings/$name ]]; then
            printf -v "$name" %s "$(<"$DIR/settings/$name")"
        else
            printf -v "$name" %s "${default[$name]}"
        fi
    done
}

write_settings() {
    local name
    mkdir -p "$DIR/settings"
    for name in "${SETTINGS[@]}"; do
        printf %s "${!name}" >"$DIR/settings/$name"
    done
}

# The directory, into which others may look only as far as the user who runs PostgreSQL needs to.
make_directory() {
    mkdir -p "$DIR"
    umask 077
    mkdir -p "$DIR/logs"
    if ((EUID == 0)); then chmod 711 "$DIR" "$DIR/logs"; else chmod 700 "$DIR" "$DIR/logs"; fi
}

make_secret() { # file, what stands before it
    [[ -s $1 ]] || "$BIN/python" -c "import secrets, sys; print(sys.argv[1] + secrets.token_hex(24))" "${2:-}" >"$1"
    chmod 600 "$1"
}

# The origins of this machine's browser, from which a page may call the server on this port.
origins() { # port
    echo "http://$HOST:$1,http://localhost:$1"
}

# The servers need no key of a language model, and no token of the person who starts them but that of the store for artifacts.
drop_keys() {
    local name
    for name in $(compgen -e); do
        [[ ($name != *_API_KEY && $name != *_TOKEN) || $name == AWS_* ]] || unset "$name"
    done
}

# PostgreSQL refuses to run as root.
as_postgres() {
    if ((EUID == 0)); then
        setpriv --reuid="$POSTGRES_USER" --regid="$(id -g "$POSTGRES_USER")" --clear-groups -- "$@"
    else
        "$@"
    fi
}

find_postgres() {
    local found=${POISE_POSTGRES_BIN:-}
    if [[ -z $found ]]; then
        found=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
    fi
    [[ -n $found && -x $found/initdb ]] || fail "PostgreSQL is not installed; install it with: apt-get install postgresql"
    POSTGRES_BIN=$found
    if ((EUID == 0)) && ! id "$POSTGRES_USER" >/dev/null 2>&1; then
        fail "PostgreSQL does not run as root and there is no user $POSTGRES_USER; name another one in POISE_POSTGRES_USER"
    fi
}

answers() { # URL
    "$BIN/python" - "$1" 2>/dev/null <<'PYTHON'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=10)
PYTHON
}

free_port() { # service, port, variable
    if (exec 3<>"/dev/tcp/$HOST/$2") 2>/dev/null; then
        fail "port $2 for $1 is taken by another program; choose another one with $3"
    fi
}

# A process id may belong to another program by now: it counts only together with the moment the process was started.
born() { # process id
    local fields
    fields=$(<"/proc/$1/stat") || return 1
    read -ra fields <<<"${fields##*) }"
    [[ ${fields[0]} != Z ]] && echo "${fields[19]}"
} 2>/dev/null

running() { # service
    local id moment
    [[ -f $DIR/$1.pid ]] && read -r id moment <"$DIR/$1.pid" && [[ $(born "$id") == "$moment" ]]
}

start() { # service, command...
    local service=$1 id
    shift
    # in a session of its own, without the lock and without a terminal
    setsid "$@" </dev/null >>"$DIR/logs/$service.log" 2>&1 9>&- &
    id=$!
    echo "$id $(born "$id")" >"$DIR/$service.pid"
}

wait_for() { # service, test...
    local service=$1 deadline=$((SECONDS + SECONDS_ALLOWED))
    shift
    until "$@"; do
        running "$service" || fail "$service ended; its log: $(last_lines "$service")"
        ((SECONDS < deadline)) || fail "$service does not answer after $SECONDS_ALLOWED s; its log is $DIR/logs/$service.log"
        sleep 0.3
    done
}

last_lines() { # service
    tail -n 3 "$DIR/logs/$1.log" | tr '\n' ' '
}

# End a process with all its descendants, also those that made sessions of their own.
end() { # service
    local id moment
    running "$1" && read -r id moment <"$DIR/$1.pid" && "$BIN/python" - "$id" <<'PYTHON'
import sys, psutil
leader = psutil.Process(int(sys.argv[1]))
family = [leader, *leader.children(recursive=True)]
leader.terminate()  # a server then ends its workers itself
_, alive = psutil.wait_procs(family, timeout=15)
family = {process for one in alive for process in (one, *one.children(recursive=True))}
for process in family:
    process.kill()
_, alive = psutil.wait_procs(family, timeout=10)
sys.exit(f"still there: {alive}" if alive else 0)
PYTHON
    rm -f "$DIR/$1.pid"
}

# --- the services ---

postgres_running() {
    [[ -d $DIR/postgres ]] && as_postgres "$POSTGRES_BIN/pg_ctl" status -D "$DIR/postgres" >/dev/null 2>&1
}

up_postgres() {
    postgres_running && return
    free_port PostgreSQL "$POSTGRES_PORT" POISE_POSTGRES_PORT
    if [[ ! -f $DIR/postgres/PG_VERSION ]]; then
        say "making the database"
        rm -rf "$DIR/postgres"
        mkdir -m 700 "$DIR/postgres"
        touch "$DIR/logs/postgres.log"
        ((EUID != 0)) || chown "$POSTGRES_USER" "$DIR/postgres" "$DIR/logs/postgres.log"
        as_postgres test -w "$DIR/postgres" ||
            fail "$POSTGRES_USER cannot reach $DIR/postgres; choose a POISE_STACK_DIR whose folders others may enter"
        install -m 400 "$DIR/password" "$DIR/initdb.password"
        ((EUID != 0)) || chown "$POSTGRES_USER" "$DIR/initdb.password"
        as_postgres "$POSTGRES_BIN/initdb" -D "$DIR/postgres" -U poise -E UTF8 --locale=C --auth=scram-sha-256 \
            --pwfile="$DIR/initdb.password" >>"$DIR/logs/initdb.log" 2>&1 ||
            fail "initdb failed; its log is $DIR/logs/initdb.log"
        rm -f "$DIR/initdb.password"
    fi
    say "starting PostgreSQL on port $POSTGRES_PORT"
    as_postgres "$POSTGRES_BIN/pg_ctl" start -w -t "$SECONDS_ALLOWED" -D "$DIR/postgres" -l "$DIR/logs/postgres.log" \
        -o "-c listen_addresses=$HOST -c port=$POSTGRES_PORT -c unix_socket_directories=" >/dev/null 9>&- ||
        fail "PostgreSQL does not start; its log: $(last_lines postgres)"
    local database
    for database in prefect mlflow; do
        query "SELECT 1 FROM pg_database WHERE datname = '$database'" | grep -q 1 || query "CREATE DATABASE $database"
    done
}

query() { # statement
    PGPASSWORD=$(<"$DIR/password") "$POSTGRES_BIN/psql" -h "$HOST" -p "$POSTGRES_PORT" -U poise -d postgres -Atqc "$1"
}

database_url() { # dialect, database
    echo "$1://poise:$(<"$DIR/password")@$HOST:$POSTGRES_PORT/$2"
}

prefect_url() {
    echo "http://$HOST:$PREFECT_PORT/api"
}

mlflow_url() {
    echo "http://$HOST:$MLFLOW_PORT"
}

up_prefect() {
    running prefect && return
    free_port Prefect "$PREFECT_PORT" POISE_PREFECT_PORT
    say "starting Prefect on port $PREFECT_PORT"
    ( # exported, because everybody can read the arguments of `env`
        drop_keys
        unset PREFECT_PROFILE
        export PREFECT_SERVER_ANALYTICS_ENABLED=false
        PREFECT_API_URL=$(prefect_url) PREFECT_SERVER_API_AUTH_STRING=$(<"$SECRET")
        PREFECT_SERVER_DATABASE_CONNECTION_URL=$(database_url postgresql+asyncpg prefect)
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS=$(origins "$PREFECT_PORT")
        export PREFECT_API_URL PREFECT_SERVER_API_AUTH_STRING PREFECT_SERVER_DATABASE_CONNECTION_URL \
            PREFECT_SERVER_CORS_ALLOWED_ORIGINS
        start prefect "$BIN/prefect" server start --host "$HOST" --port "$PREFECT_PORT"
    )
}

up_mlflow() {
    running mlflow && return
    free_port MLflow "$MLFLOW_PORT" POISE_MLFLOW_PORT
    say "starting MLflow on port $MLFLOW_PORT"
    # one worker and no job runner: half a gigabyte of memory in place of more than one
    (
        drop_keys
        unset MLFLOW_TRACKING_URI
        export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
        MLFLOW_BACKEND_STORE_URI=$(database_url postgresql+psycopg2 mlflow)
        export MLFLOW_BACKEND_STORE_URI
        start mlflow "$BIN/mlflow" server --host "$HOST" --port "$MLFLOW_PORT" --workers "${POISE_MLFLOW_WORKERS:-1}" \
            --artifacts-destination "$ARTIFACTS" --allowed-hosts "$HOST:$MLFLOW_PORT,localhost:$MLFLOW_PORT" \
            --cors-allowed-origins "$(origins "$MLFLOW_PORT")"
    )
}

up_worker() {
    [[ -z $WORK_POOL ]] && return
    running worker && return
    say "starting a worker of pool $WORK_POOL"
    cd "$ROOT"
    (
        unset PREFECT_PROFILE
        PREFECT_API_URL=$(prefect_url) PREFECT_API_AUTH_STRING=$(<"$SECRET") MLFLOW_TRACKING_URI=$(mlflow_url)
        export PREFECT_API_URL PREFECT_API_AUTH_STRING MLFLOW_TRACKING_URI
        start worker "$BIN/prefect" worker start --pool "$WORK_POOL" --type process --name local
    )
}

# --- the commands ---

up() {
    local script
    for script in prefect mlflow; do
        [[ -x $BIN/$script ]] || fail "$BIN/$script is missing; 'make setup' installs it, or set POISE_BIN"
    done
    "$BIN/python" -c "import asyncpg, psycopg2" 2>/dev/null ||
        fail "the database drivers are missing; install them with: $BIN/pip install -c constraints.txt -e '.[server]'"
    find_postgres
    make_directory
    exec 9>"$DIR/lock"
    flock -n 9 || fail "another call is at work on $DIR"
    read_settings
    write_settings
    make_secret "$DIR/password"
    make_secret "$SECRET" poise: # Prefect's form is user:password
    up_postgres
    up_prefect
    up_mlflow
    wait_for prefect answers "$(prefect_url)/health"
    wait_for mlflow answers "$(mlflow_url)/health"
    up_worker
    status
}

down() {
    [[ -d $DIR ]] || return 0
    exec 9>"$DIR/lock"
    flock -w 30 9 || fail "another call is at work on $DIR"
    local service
    for service in worker mlflow prefect; do
        end "$service"
    done
    find_postgres
    if postgres_running; then
        as_postgres "$POSTGRES_BIN/pg_ctl" stop -w -m fast -D "$DIR/postgres" >/dev/null ||
            as_postgres "$POSTGRES_BIN/pg_ctl" stop -w -m immediate -D "$DIR/postgres" >/dev/null ||
            fail "PostgreSQL does not stop; its log is $DIR/logs/postgres.log"
    fi
    say "down; the data is in $DIR"
}

status() {
    read_settings
    find_postgres
    local all=0
    line() { # name, address, test...
        local name=$1 address=$2 word=running
        shift 2
        "$@" || { word="not running" && all=1; }
        printf '%-12s%-14s%s\n' "$name" "$word" "$address"
    }
    line postgresql "$HOST:$POSTGRES_PORT" postgres_running
    line prefect "http://$HOST:$PREFECT_PORT" answers "$(prefect_url)/health"
    line mlflow "$(mlflow_url)" answers "$(mlflow_url)/health"
    [[ -z $WORK_POOL ]] || line worker "pool $WORK_POOL" running worker
    return "$all"
}

environment() {
    read_settings
    printf 'export PREFECT_API_URL=%s\nexport MLFLOW_TRACKING_URI=%s\n' "$(prefect_url)" "$(mlflow_url)"
    # where it is, and not what it is: a terminal, or a log of it, is no place for a secret
    # shellcheck disable=SC2016
    printf 'PREFECT_API_AUTH_STRING=$(cat %q); export PREFECT_API_AUTH_STRING\n' "$SECRET"
}

case ${1:-} in
up | down | status) "$1" ;;
env) environment ;;
*)
    sed -n '/^#   infra/s/^#   //p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac

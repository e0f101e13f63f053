#!/bin/sh
# Runs at the first start of an empty Postgres volume: one database and one role for each server.
set -eu
for name in mlflow prefect; do
  case "$name" in
    mlflow) password="$MLFLOW_DB_PASSWORD" ;;
    prefect) password="$PREFECT_DB_PASSWORD" ;;
  esac
  psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --set role="$name" --set password="$password" <<'SQL'
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
SQL
done

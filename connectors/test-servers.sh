#!/usr/bin/env bash
# The contract kit against real servers, which Docker starts for it and which are thrown away afterwards.
#
#   connectors/test-servers.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."

compose() { docker compose --project-name cbir-test --file connectors/docker-compose.yaml "$@"; }
answers() {
  for _ in {1..60}; do "$@" >/dev/null 2>&1 && return; sleep 1; done
  echo "no answer within a minute: $*" >&2
  return 1
}

export CBIR_QDRANT_URL=http://localhost:6333
export CBIR_PG_DSN=postgresql://postgres:cbir@localhost/postgres

trap 'compose down --volumes' EXIT
compose up --detach qdrant postgres
answers curl --fail "$CBIR_QDRANT_URL/readyz"
answers compose exec -T postgres pg_isready --host localhost --username postgres
"${PYTHON:-.venv/bin/python}" -m pytest tests/test_connectors.py -k Server "$@"

#!/usr/bin/env bash
# An order from the shell: created, paid, and taken back as a whole. Needs curl and a running ledger (`cargo run -p api`).
set -euo pipefail
ledger=${LEDGER_URL:-http://127.0.0.1:8080}
order=$(cat /proc/sys/kernel/random/uuid)
user="ann-${order%%-*}"

post() { curl -sS -X POST "$ledger$1" -H 'Content-Type: application/json' ${LEDGER_KEY:+-H "Authorization: Bearer $LEDGER_KEY"} -d "$2"; echo; }
balance() { curl -sS "$ledger/v1/accounts/$user/points?consistency=strong" ${LEDGER_KEY:+-H "Authorization: Bearer $LEDGER_KEY"}; echo; }
field() { sed -E "s/.*\"$1\":\"([^\"]*)\".*/\1/"; }

echo "--- $user gets 1000 points"
post /v1/credits "{\"user_id\":\"$user\",\"credit_type\":\"points\",\"amount\":1000,\"business_code\":\"signup\",\"business_id\":\"$user\"}"
echo "--- order $order holds 300 of them for half an hour"
freeze=$(post /v1/freezes "{\"user_id\":\"$user\",\"credit_type\":\"points\",\"amount\":300,\"expires_in_seconds\":1800,\"business_code\":\"order.create\",\"business_id\":\"$order\",\"operation_id\":\"$order\"}")
echo "$freeze"
echo "--- it is paid"
post /v1/debits "{\"freeze_id\":\"$(echo "$freeze" | field transaction_id)\",\"business_code\":\"order.pay\",\"business_id\":\"$order\",\"operation_id\":\"$order\"}"
echo "--- it is cancelled after all: the ledger takes back whatever was done for it, once"
post "/v1/operations/$order/compensate" '{"reason":"returned"}'
echo "--- all 1000 points are there again"
balance

#!/usr/bin/env bash
# A small flash sale from the shell: 50 buyers, 5 units, 10 at the same moment. Needs curl and a running ledger.
set -euo pipefail
export ledger=${LEDGER_URL:-http://127.0.0.1:8080}
export sale=${SALE:-sale-$$-$RANDOM}

post() { curl -sS -X POST "$ledger$1" -H 'Content-Type: application/json' ${LEDGER_KEY:+-H "Authorization: Bearer $LEDGER_KEY"} -d "$2"; }
buy() {
    # One unit of the stock and the buyer's points, both or neither.
    local answer
    answer=$(post /v1/batches "{\"commands\":[
        {\"type\":\"freeze\",\"user_id\":\"stock:$sale\",\"credit_type\":\"units\",\"amount\":1,\"business_code\":\"order.reserve\",\"business_id\":\"$sale/$1\"},
        {\"type\":\"debit\",\"user_id\":\"$sale:buyer-$1\",\"credit_type\":\"points\",\"amount\":30,\"business_code\":\"order.pay\",\"business_id\":\"$sale/$1\"}]}")
    case $answer in
    *'"results"'*) echo bought ;;
    *'"insufficient_balance"'*) echo 'sold out' ;;
    *)
        echo "failed: $answer" >&2
        return 1
        ;;
    esac
}
export -f post buy

post /v1/credits "{\"user_id\":\"stock:$sale\",\"credit_type\":\"units\",\"amount\":5,\"business_code\":\"sale.open\",\"business_id\":\"$sale\"}" >/dev/null
for n in $(seq 50); do
    post /v1/credits "{\"user_id\":\"$sale:buyer-$n\",\"credit_type\":\"points\",\"amount\":30,\"business_code\":\"sale.open\",\"business_id\":\"$sale\"}" >/dev/null
done
# 5 bought, 45 sold out.
seq 50 | xargs -P 10 -I N bash -c 'buy N' | sort | uniq -c
curl -sS "$ledger/v1/accounts/stock:$sale/units?consistency=strong" ${LEDGER_KEY:+-H "Authorization: Bearer $LEDGER_KEY"}
echo

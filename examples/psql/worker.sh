#!/bin/sh
# worker.sh: a whole pyjobs worker in psql and shell.
#
#     worker.sh [-q QUEUE[,QUEUE...]] [-n NAME] [-l SECONDS] [-i] COMMAND [ARG...]
#
# For each item of each batch COMMAND is run with the item on its standard input. What it prints is
# the answer, and goes into example.answer (examples/schema.sql) in the transaction that records the
# batch. How it exits decides:
#     0        the item succeeded
#     75       not now (EX_TEMPFAIL): the whole batch goes back, and is tried again later, for as
#              long as the job's max_attempts allow
#     another  the item failed, with what COMMAND said on standard error as the reason
#
#   -q  queues to ask, by commas (default)   -l  lease in seconds (60); renewed every third of it
#   -n  this worker's name (host:pid)        -i  end when there is nothing to do, instead of waiting
#
# TERM or INT: gives the batch back, which costs it nothing, and exits 0. The database is
# PYJOBS_DATABASE_URL. No value is ever pasted into SQL: psql quotes them all (:'name'), and items
# and answers travel as base64.
set -u

queues=default name=$(uname -n):$$ lease=60 until_idle=''
while getopts q:n:l:i option; do
    case $option in
        q) queues=$OPTARG ;;
        n) name=$OPTARG ;;
        l) lease=$OPTARG ;;
        i) until_idle=1 ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
if [ $# -eq 0 ]; then
    echo "usage: $0 [-q QUEUE,...] [-n NAME] [-l SECONDS] [-i] COMMAND [ARG...]" >&2
    exit 2
fi
: "${PYJOBS_DATABASE_URL:?}"
third=$((lease > 3 ? lease / 3 : 1))
mark=$(printf '\037') # between columns: it is in no number and no base64
folder=$(mktemp -d) || exit 1
export PGAPPNAME=worker.sh PGCONNECT_TIMEOUT=10 PYJOBS_RESULTS="$folder/results"

stop='' lost='' child='' heart='' batch='' epoch=''
trap 'stop=1; end_child' TERM INT
trap 'hear' USR1 # from the heart
trap 'rm -rf "$folder"; kill "$heart" 2>/dev/null' EXIT

say() { echo "$(date '+%H:%M:%S') $name: $*" >&2; }
end_child() { [ -z "$child" ] || kill -TERM "$child" 2>/dev/null; }
# Wait for a child so that a signal is heard at once; its exit status is ours.
await() {
    child=$!
    if [ -z "$stop$lost" ]; then
        wait "$child"
    else
        end_child
    fi
    set -- $?
    child=''
    return "$1"
}
pause() { sleep "$1" >/dev/null 2>&1 & await; }

# The SQL on standard input, with psql variables as arguments. Exits 3 where a statement failed, 2
# where the connection did; what the server said is then in $folder/error, its SQLSTATE first.
sql() {
    "${PSQL:-psql}" -X -q -A -t -F "$mark" -v ON_ERROR_STOP=1 -v VERBOSITY=verbose "$@" \
        -d "$PYJOBS_DATABASE_URL" -f - 2>"$folder/error"
}
server_said() {
    sed -n 's/^psql:[^ ]* ERROR:  //p; s/^psql: error: //p' "$folder/error" | head -n 1
}

# One line an item: batch, epoch, job, index, item. The claim has committed when it answers.
claim() {
    sql -v worker="$name" -v queues="$queues" -v lease="$lease seconds" <<'SQL'
with claimed as materialized (
    select *
    from pyjobs.claim_next_job(:'worker', string_to_array(:'queues', ','), lease => :'lease')
)
select c.batch_id, c.lease_epoch, c.job_id, i.ordinality - 1,
    translate(encode(convert_to(i.value #>> '{}', 'UTF8'), 'base64'), E'\n', '')
from claimed c
cross join lateral jsonb_array_elements(c.items) with ordinality i
order by i.ordinality;
SQL
}

# A process of its own that extends the lease of what the file "held" names, and signals the worker
# when the lease is lost or the job was cancelled. It must not outlive the worker: a lease that
# nobody works for has to run out.
beat() {
    trap 'end_child; exit 0' TERM
    trap - INT USR1 EXIT
    home=$folder folder=$folder/heart
    while pause "$third" && is_alive; do
        read -r batch epoch <"$home/held" 2>/dev/null || continue
        status=$(sql -v batch="$batch" -v epoch="$epoch" -v lease="$lease seconds" <<'SQL'
select job_status from pyjobs.extend_lease(:'batch', :'epoch', :'lease');
SQL
        )
        case $?:$status in
            0:CANCELING | 3:*) echo "$batch $epoch" >"$home/lost" && kill -USR1 $$ ;;
            2:*) say "batch $batch: no connection to renew its lease, which may outlive that" ;;
        esac
    done
}
# A process that its parent has not waited for still takes signals; Linux says what it is.
is_alive() { kill -0 $$ && ! grep -q '^State:.*Z' "/proc/$$/status"; } 2>/dev/null
# What it says may be of a batch that is done by now.
hear() { [ "$(cat "$folder/lost")" != "$batch $epoch" ] || { lost=1; end_child; }; }
hold() { echo "$batch $epoch" >"$folder/next" && mv "$folder/next" "$folder/held"; }
let_go() { rm -f "$folder/held"; }

# The answers and the record of the batch: one transaction, so that both are there or neither.
record() {
    sql -v batch="$batch" -v epoch="$epoch" -v job="$job" <<'SQL'
\set results `cat "$PYJOBS_RESULTS"`
select coalesce(jsonb_agg(jsonb_build_object('index', r.index, 'item', r.item, 'answer', r.said))
        filter (where r.outcome = 'ok'), '[]') as answers,
    coalesce(jsonb_agg(jsonb_build_object('index', r.index, 'error', r.said))
        filter (where r.outcome = 'failed'), '[]') as failed
from (
    select split_part(line, ',', 1)::int as index,
        split_part(line, ',', 2) as outcome,
        convert_from(decode(split_part(line, ',', 3), 'base64'), 'UTF8') as item,
        rtrim(convert_from(decode(split_part(line, ',', 4), 'base64'), 'UTF8'), E'\n') as said
    from string_to_table(:'results', E'\n') line
) r
\gset

begin;
insert into example.answer (batch_id, index, job_id, item, answer)
select :'batch'::bigint, r.index, :'job'::bigint, r.item, r.answer
from jsonb_to_recordset(:'answers') r (index int, item text, answer text);

select job_status
from pyjobs.record_batch(:'batch', :'epoch', failed => :'failed',
    counters => jsonb_build_object('answers', jsonb_array_length(:'answers')));
commit;
SQL
}

# Without a reason it costs the batch no attempt.
release() {
    sql -v batch="$batch" -v epoch="$epoch" -v reason="$1" >/dev/null <<'SQL'
select pyjobs.release_batch(:'batch', :'epoch', nullif(:'reason', ''),
    retry_in => case :'reason' when '' then '0' else '5 seconds' end::interval);
SQL
    case $? in
        0) say "batch $batch given back${1:+: $1}" ;;
        *) say "batch $batch not given back, its lease will run out: $(server_said)" ;;
    esac
}

refused() {
    say "batch $batch refused: $1"
    sql -v batch="$batch" -v epoch="$epoch" -v state="${1%%:*}" -v detail="$1" >/dev/null <<'SQL'
select pyjobs.report_refused(:'batch', :'epoch', :'state', :'detail');
SQL
}

# Run COMMAND on every item that the claim gave. For each the file results gets a line
# "index,ok,item,answer" or "index,failed,item,reason".
work() {
    : >"$PYJOBS_RESULTS"
    while IFS=$mark read -r _ _ _ index item; do
        [ -z "$stop$lost" ] || return 0
        printf %s "$item" | base64 -d >"$folder/item"
        "$@" <"$folder/item" >"$folder/answer" 2>"$folder/said" &
        await
        code=$?
        [ -z "$stop$lost" ] || return 0
        case $code in
            0) outcome=ok said=$folder/answer ;;
            75) reason=$(tail -n 3 "$folder/said"); return 1 ;;
            *)
                outcome=failed said=$folder/reason
                { tail -n 3 "$folder/said" | LC_ALL=C tr -cd '[:print:]\n'; } >"$said"
                [ -s "$said" ] || echo "exit status $code" >"$said"
                ;;
        esac
        echo "$index,$outcome,$item,$(base64 <"$said" | tr -d '\n')" >>"$PYJOBS_RESULTS"
    done <"$folder/claim"
}

mkdir "$folder/heart" || exit 1
beat &
heart=$!
say "asks for $queues"
while [ -z "$stop" ]; do
    lost='' reason='' batch='' epoch=''
    if ! claim >"$folder/claim"; then
        say "could not claim: $(server_said)"
        [ -z "$until_idle" ] || exit 1
        pause 5
        continue
    fi
    if [ ! -s "$folder/claim" ]; then
        [ -z "$until_idle" ] || break
        pause 1
        continue
    fi
    IFS=$mark read -r batch epoch job index item <"$folder/claim"
    hold
    work "$@" || reason=${reason:-not now}
    let_go
    if [ -n "$stop$lost$reason" ]; then
        release "$reason"
        continue
    fi
    status=$(record)
    code=$?
    # The connection was lost and with it the answer: try again. PJ002 then means that it had been
    # recorded.
    while [ $code -eq 2 ] && [ -z "$stop" ]; do
        say "batch $batch: $(server_said); trying again"
        pause 2
        status=$(record)
        code=$?
    done
    said=$(server_said)
    case $code:$said in
        0:* | 3:PJ002*) say "batch $batch recorded, job $job is ${status:-known}" ;;
        3:PJ001*) refused "$said" ;;
        2:*) say "batch $batch: no answer; its lease will run out" ;;
        *) release "${said:-could not be recorded}" ;;
    esac
done
say "ends"

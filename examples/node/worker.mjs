// worker.mjs: a whole pyjobs worker in Node, with nothing but the PostgreSQL client.
//
//     npm install && node worker.mjs [--queues a,b] [--name NAME] [--lease SECONDS] [--until-idle]
//
// Writes the SHA-256 of each item into example.answer (examples/schema.sql) in the transaction that
// records the batch. The database is PYJOBS_DATABASE_URL. SIGTERM: gives the batch back, which
// costs it nothing, and exits 0.

import { createHash } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import pg from "pg";

const { values: options } = parseArgs({
  options: {
    queues: { type: "string", default: "default" },
    name: { type: "string", default: `${hostname()}:${process.pid}` },
    lease: { type: "string", default: "60" },
    "until-idle": { type: "boolean", default: false },
    "item-delay": { type: "string", default: "0" }, // milliseconds an item takes, to see it at work
  },
});
if (!process.env.PYJOBS_DATABASE_URL) {
  console.error("PYJOBS_DATABASE_URL is not set");
  process.exit(2);
}
const lease = `${Number(options.lease)} seconds`;

// Three connections: one works, one renews the lease meanwhile, one to spare. An idle one that
// breaks is replaced.
const pool = new pg.Pool({ connectionString: process.env.PYJOBS_DATABASE_URL, max: 3 });
pool.on("error", (error) => say(`an idle connection broke: ${error.message}`));

const stopping = new AbortController();
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => stopping.abort());

const say = (text) => console.error(`${new Date().toISOString()} ${options.name}: ${text}`);
const rest = (ms, signal) => sleep(ms, undefined, { signal }).catch(() => {});

// The work itself. What it throws for one item is that item's failure, not the batch's.
async function answer(item, signal) {
  if (typeof item !== "string") throw new Error("not a text");
  const delay = Number(options["item-delay"]);
  if (delay > 0) await sleep(delay, undefined, { signal });
  return createHash("sha256").update(item).digest("hex");
}

// Renews the lease every third of it; aborts the work when the lease is lost or the job cancelled.
// Work that blocks the event loop for longer than the lease belongs in a worker thread.
function keepLease(batch, work) {
  const timer = setInterval(async () => {
    try {
      const { rows } = await pool.query("select job_status from pyjobs.extend_lease($1, $2, $3)", [
        batch.batch_id, batch.lease_epoch, lease,
      ]);
      if (rows[0].job_status === "CANCELING") work.abort();
    } catch (error) {
      // Else there is no connection; the lease may outlive that.
      if (error.code?.startsWith("PJ")) work.abort();
    }
  }, (Number(options.lease) * 1000) / 3);
  return () => clearInterval(timer);
}

// The rows and the record of the batch: one transaction, so that both are there or neither.
async function record(batch, answers, failed) {
  const client = await pool.connect();
  try {
    await client.query("begin");
    await client.query(
      `insert into example.answer (batch_id, index, job_id, item, answer)
       select $1, r.index, $2, r.item, r.answer
       from jsonb_to_recordset($3) r (index int, item text, answer text)`,
      [batch.batch_id, batch.job_id, JSON.stringify(answers)],
    );
    const { rows } = await client.query(
      "select job_status from pyjobs.record_batch($1, $2, failed => $3, counters => $4)",
      [
        batch.batch_id, batch.lease_epoch,
        JSON.stringify(failed), JSON.stringify({ answers: answers.length }),
      ],
    );
    await client.query("commit");
    client.release();
    return rows[0].job_status;
  } catch (error) {
    client.release(error); // closes it, and with it the transaction
    throw error;
  }
}

async function release(batch, error) {
  // With an error it costs an attempt and is tried again later. Without one it is free, and may be
  // claimed at once.
  await pool.query("select pyjobs.release_batch($1, $2, $3, $4)", [
    batch.batch_id, batch.lease_epoch, error ?? null, error ? "5 seconds" : "0",
  ]);
  say(`batch ${batch.batch_id} given back${error ? `: ${error}` : ""}`);
}

async function work(batch) {
  const ended = new AbortController();
  const signal = AbortSignal.any([ended.signal, stopping.signal]);
  const letGo = keepLease(batch, ended);
  const answers = [];
  const failed = [];
  try {
    for (const [index, item] of batch.items.entries()) {
      if (signal.aborted) break;
      try {
        answers.push({ index, item, answer: await answer(item, signal) });
      } catch (error) {
        if (!signal.aborted) failed.push({ index, error: error.message });
      }
    }
  } finally {
    letGo();
  }
  if (signal.aborted) return release(batch);

  for (let attempt = 1; ; attempt += 1) {
    try {
      const status = await record(batch, answers, failed);
      return say(`batch ${batch.batch_id} recorded, job ${batch.job_id} is ${status}`);
    } catch (error) {
      if (error.code === "PJ002") {
        return say(`batch ${batch.batch_id} had been recorded: only the answer was lost`);
      }
      if (error.code === "PJ001") {
        // Nothing of the transaction remains. Tell the operators, in a transaction of its own.
        say(`batch ${batch.batch_id} refused: ${error.message}`);
        return pool.query("select pyjobs.report_refused($1, $2, $3, $4)", [
          batch.batch_id, batch.lease_epoch, error.code, error.message,
        ]);
      }
      // No SQLSTATE, or one of these: the connection, a restart, a deadlock. It may be done again.
      const passing = !/^[0-9A-Z]{5}$/.test(error.code ?? "") || /^(08|40|57P0)/.test(error.code);
      if (!passing || attempt === 5) return release(batch, error.message);
      await rest(attempt * 500, stopping.signal);
    }
  }
}

say(`asks for ${options.queues}`);
while (!stopping.signal.aborted) {
  try {
    const { rows } = await pool.query("select * from pyjobs.claim_next_job($1, $2, lease => $3)", [
      options.name, options.queues.split(","), lease,
    ]);
    for (const batch of rows) await work(batch);
    if (rows.length === 0) {
      if (options["until-idle"]) break;
      await rest(1000, stopping.signal);
    }
  } catch (error) {
    say(`trouble: ${error.message}`);
    if (options["until-idle"]) process.exitCode = 1;
    if (options["until-idle"]) break;
    await rest(5000, stopping.signal);
  }
}
say("ends");
await pool.end();

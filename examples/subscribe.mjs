// Watch klines live from Node: copy this file anywhere and change it.
//
//   npm install zeromq @msgpack/msgpack        # zeromq 6, which brings its library ready built
//   node subscribe.mjs                                            # BTCUSDT 1m from this machine
//   node subscribe.mjs tcp://10.0.0.5:5556 ETHUSDT 1h
//
// Attaching is one step: on subscribing, the engine sends at once every kline of the topic that is not yet in the
// database, and the current one. From then on each change sends the whole row again, so a lost message is healed by
// the next. Prices and volumes are decimal strings, times are milliseconds.

import { decode } from "@msgpack/msgpack";
import { Subscriber } from "zeromq";

const [endpoint = "tcp://127.0.0.1:5556", symbol = "BTCUSDT", interval = "1m"] = process.argv.slice(2);
const topic = `kline.${symbol}.${interval}`;

const socket = new Subscriber({ receiveHighWaterMark: 10_000 }); // whoever reads slower loses messages, and sees it
socket.connect(endpoint);
socket.subscribe(topic);
console.log(`${endpoint} ${topic}: waiting for the first kline; Ctrl-C ends`);

let session, sequence, lost = 0;
for await (const [name, body] of socket) {
  if (name.toString() !== topic) continue; // ZeroMQ matches prefixes
  // Ids and sessions may pass 2^53: as BigInt they stay exact.
  const row = decode(body, { useBigInt64: true });
  const rowSequence = Number(row.sequence);
  if (row.session === session) {
    const missing = Math.max(0, rowSequence - sequence - 1);
    lost += missing;
    if (missing) console.log(`-- ${missing} messages lost (${lost} so far); this row is whole again`);
  } else if (session !== undefined) {
    console.log("-- the engine was restarted");
  }
  [session, sequence] = [row.session, rowSequence];
  const opened = new Date(Number(row.open_time)).toISOString().slice(0, 16).replace("T", " ");
  console.log(
    `${opened}  O ${row.open}  H ${row.high}  L ${row.low}  C ${row.close}  volume ${row.volume}` +
      `  trades ${row.trade_count}  ${row.final ? "final" : row.closed ? "closed" : "open"}  from ${row.source}  revision ${row.revision}`,
  );
}

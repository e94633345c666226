import { compile } from './native.js';
import { FaultBench, placements, HANDLERS } from './faults.js';
import { spread } from './statistics.js';
const built = compile();
if ('reason' in built) throw built.reason;
const bench = new FaultBench(built.library, Number(process.argv[2] ?? 16384));
console.log(bench.warmth);
for (const p of placements(bench.native).possible) for (const h of HANDLERS) {
  if (process.argv[4] && !process.argv[4].split(',').includes(p.name)) continue;
  if (process.argv[5] && !process.argv[5].split(',').includes(h)) continue;
  const t = Date.now();
  const { pairs } = await bench.contest(p, h, Number(process.argv[3] ?? 3));
  const f = (s) => `${s.median.toFixed(2)} (${s.min.toFixed(2)}–${s.max.toFixed(2)})`;
  console.log(p.name.padEnd(6), h.padEnd(9), spread(pairs.map(x => x.handler.perSecond)).median.toFixed(0).padStart(7), 'C', spread(pairs.map(x=>x.c.perSecond)).median.toFixed(0).padStart(7),
   'ratio', f(spread(pairs.map(x => x.handler.perSecond/x.c.perSecond))), 'p50', spread(pairs.map(x=>x.handler.p50Us)).median.toFixed(1), 'C', spread(pairs.map(x=>x.c.p50Us)).median.toFixed(1), 'p99', spread(pairs.map(x=>x.handler.p99Us)).median.toFixed(1), 'C', spread(pairs.map(x=>x.c.p99Us)).median.toFixed(1), 'ratio', f(spread(pairs.map(x => x.handler.p99Us/x.c.p99Us))), ((Date.now()-t)/1000).toFixed(1)+'s');
}

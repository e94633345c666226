// A thread that runs one virtual processor: it performs the requested walks in order, and answers each with its sum.

import { parentPort, workerData } from 'node:worker_threads';
import { Cpu, type Walk } from './kvm.js';

export interface CpuOptions {
  /** The virtual machine's descriptor. */
  readonly vm: number;
  readonly runBytes: number;
  readonly index: number;
}

const { vm, runBytes, index }: CpuOptions = workerData;
const cpu = new Cpu(vm, runBytes, index);
parentPort?.on('message', (walk: Walk) => parentPort?.postMessage(cpu.walk(walk)));

// The entry `userfaultfd/core`: what runs anywhere. No koffi, nothing of Node.

export { Core, type Exports, instantiate, type Plane, type RangeReport } from './core.js';
export { decodeMessages, type Message } from './messages.js';

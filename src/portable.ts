// The entry `userfaultfd/core`: what runs anywhere. No koffi, nothing of Node.

export { Core, instantiate } from './core.js';
export { decodeMessages, type Message } from './messages.js';

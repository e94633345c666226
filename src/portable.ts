// The entry `userfaultfd/core`: the parts that run anywhere. No koffi, no Node APIs.

export {
  Action,
  type ExchangeView,
  type Exports,
  Operation,
  Option,
  Plane,
  Scan,
  Step,
} from './bindings/core.js';
export { Core, instantiate } from './uffd/core.js';
export { decodeMessages, type Message } from './uffd/messages.js';

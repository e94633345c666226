// The module of the codec of traces, which the page carries beside its script. Bundled in place of `#trace`.

import { bytesIn } from './embedded.js';

export default bytesIn('codec');

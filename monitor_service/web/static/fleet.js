// The page of all runs: nothing but fresh.

import { keepLive } from "./live.js";

keepLive();

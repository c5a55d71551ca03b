// The page of all runs: fresh, and a choice of order or name takes effect at once.

import { keepLive } from "./live.js";

document.getElementById("sort").addEventListener("change", ({ target }) => target.form.requestSubmit());
keepLive({ stream: "/api/v1/stream" });

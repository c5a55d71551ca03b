// Keeps the parts of a page fresh: the server's own HTML is fetched again and changed parts are put in place.

import { NoAnswer, ask } from "./ask.js";
import { localise } from "./times.js";

const EVERY_MS = 2000;
const AFTER_THE_END_MS = 15000;

/** What the server last sent for each [data-live] part, by id; the reader's page itself may be localised since. */
const sent = new Map();

const parts = (root) => root.querySelectorAll("[data-live]");

async function renew() {
  const answer = await ask(location.href, { Accept: "text/html" });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of parts(fresh)) {
    const here = document.getElementById(part.id);
    if (!here || sent.get(part.id) === part.innerHTML) continue;
    sent.set(part.id, part.innerHTML);
    here.replaceChildren(...document.importNode(part, true).childNodes);
  }
}

/** Do `work`; say on the page whether the monitor answered. */
async function withNotice(work) {
  const notice = document.getElementById("unheard");
  try {
    await work();
    notice.hidden = true;
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    notice.hidden = false;
  }
}

/**
 * Do `then()`, and look again every two seconds while the page is seen, less often once `hasEnded()`.
 * `then()` is awaited after each look, so that looks never overlap.
 */
export function keepLive({ then = async () => {}, hasEnded = () => false } = {}) {
  for (const part of parts(document)) sent.set(part.id, part.innerHTML);
  let timer = null;
  const look = async (work) => {
    clearTimeout(timer);
    try {
      await withNotice(work);
      localise(document);
    } finally {
      if (!document.hidden) timer = setTimeout(look, hasEnded() ? AFTER_THE_END_MS : EVERY_MS, again);
    }
  };
  const again = async () => {
    await renew();
    await then();
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look(again)));
  localise(document);
  look(then);
}

// Keeps the parts of a page fresh: the server's own HTML is fetched again and changed parts are put in place.
//
// The monitor's live stream says when; without one (too many readers, an old proxy) the page looks by the clock.

import { NoAnswer, ask } from "./ask.js";
import { localise } from "./times.js";

const KINDS = ["transition", "finding", "event", "command", "step"];
const AT_MOST_EVERY_MS = 500;
const EVERY_MS = 2000;
const EVERY_WITH_STREAM_MS = 15000;
const AFTER_THE_END_MS = 15000;

/** What the server last sent for each [data-live] part, by id; the reader's page itself may be localised since. */
const sent = new Map();

const parts = (root) => root.querySelectorAll("[data-live]");

/** Put new content into a part; whoever stood on one of its links stands on it again, and what was ticked stays so. */
function put(part, fresh) {
  const held = part.contains(document.activeElement) ? document.activeElement : null;
  const key = held?.id ? `#${CSS.escape(held.id)}` : held?.getAttribute("href") && `[href="${CSS.escape(held.getAttribute("href"))}"]`;
  const ticked = [...part.querySelectorAll("input:checked")].map(({ id }) => id);
  part.replaceChildren(...document.importNode(fresh, true).childNodes);
  for (const box of part.querySelectorAll("input")) box.checked = ticked.includes(box.id);
  if (key) part.querySelector(key)?.focus({ preventScroll: true });
}

async function renew() {
  const answer = await ask(location.href, { Accept: "text/html" });
  if (answer.redirected) throw new NoAnswer(`${location.pathname}: signed out`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of parts(fresh)) {
    const here = document.getElementById(part.id);
    if (!here || sent.get(part.id) === part.innerHTML) continue;
    sent.set(part.id, part.innerHTML);
    put(here, part);
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

/** Calls `hear()` on each news while the page is seen; `isOpen()` tells whether it would be called. */
function listen(url, hear) {
  let source = null;
  const open = () => {
    source = new EventSource(url);
    for (const kind of KINDS) source.addEventListener(kind, hear);
  };
  const follow = () => {
    source?.close();
    source = null;
    if (!document.hidden) open();
  };
  document.addEventListener("visibilitychange", follow);
  addEventListener("pagehide", () => source?.close());
  follow();
  return () => source?.readyState === EventSource.OPEN;
}

/**
 * Do `then()`, and look again whenever `stream` has news, or from time to time; less often once `hasEnded()`.
 * `then()` is awaited after each look, so that looks never overlap.
 */
export function keepLive({ stream, then = async () => {}, hasEnded = () => false }) {
  for (const part of parts(document)) sent.set(part.id, part.innerHTML);
  let [timer, isLooking, hasNews, lookedAt] = [null, false, false, 0];
  const pause = () => {
    if (hasNews) return Math.max(0, lookedAt + AT_MOST_EVERY_MS - performance.now());
    return hasEnded() ? AFTER_THE_END_MS : isStreaming() ? EVERY_WITH_STREAM_MS : EVERY_MS;
  };
  const plan = () => {
    clearTimeout(timer);
    if (!document.hidden && !isLooking) timer = setTimeout(look, pause(), again);
  };
  const look = async (work) => {
    [isLooking, hasNews, lookedAt] = [true, false, performance.now()];
    try {
      await withNotice(work);
      localise(document);
    } finally {
      isLooking = false;
      plan();
    }
  };
  const again = async () => {
    await renew();
    await then();
  };
  const isStreaming = listen(stream, () => {
    hasNews = true;
    plan();
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : isLooking || look(again)));
  localise(document);
  look(then);
}

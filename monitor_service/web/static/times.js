// Moments in the reader's own time zone; the page alone shows UTC.

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const DAY = { day: "numeric", month: "short" };

const isToday = (moment) => moment.toDateString() === new Date().toDateString();

function ago(moment) {
  const seconds = Math.max(0, (Date.now() - moment) / 1000);
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

/** Rewrite each <time datetime> below `root`; those with data-ago say how long ago it was. */
export function localise(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.valueOf())) continue;
    const clock = moment.toLocaleTimeString([], CLOCK);
    const full = isToday(moment) ? clock : `${moment.toLocaleDateString([], DAY)}, ${clock}`;
    const text = "ago" in element.dataset ? ago(moment) : full;
    if (element.textContent !== text) element.textContent = text;
    element.title = `${moment.toISOString().replace("T", " ").slice(0, 19)} UTC`;
  }
}

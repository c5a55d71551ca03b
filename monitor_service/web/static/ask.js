// One question to the monitor, and the one error that a page can live with: no answer for now.

/** The monitor is away, or answers with an error; the page keeps what it has and asks again later. */
export class NoAnswer extends Error {}

/** The response to a GET of `url`. Throws NoAnswer. */
export async function ask(url, headers = {}) {
  let answer;
  try {
    answer = await fetch(url, { headers });
  } catch (error) {
    throw new NoAnswer(`${url}: ${error.message}`, { cause: error });
  }
  if (!answer.ok) throw new NoAnswer(`${url}: the monitor answers ${answer.status}`);
  return answer;
}

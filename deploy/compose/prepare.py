"""Makes what the services of docker-compose.yml need to trust each other; what is there already stays.

``passwords`` writes the passwords of PostgreSQL and Grafana, ``tokens`` brings the database up to date and
makes an access token for each service. Each file lies in a volume that only its reader and these jobs mount.
"""

import os
import secrets
import sys
from pathlib import Path

SECRETS = Path("/secrets")
TOKENS = {
    "trainer": ("ingest",),
    "prometheus": ("read",),
    "alertmanager": ("hook",),
    "operator": ("read", "control"),
}


def write(path: Path, text: str) -> None:
    """Whole or not at all. Any user may read it, for each service has its own; the volume is the fence."""
    half = path.with_name(f".{path.name}.new")
    half.write_text(text)
    half.chmod(0o444)
    half.rename(path)


def passwords() -> None:
    """Random ones, once. Raises SystemExit where the database is there and its password is not."""
    database, grafana = SECRETS / "database", SECRETS / "grafana"
    if not (database / "password").exists():
        password = secrets.token_urlsafe(24)
        write(database / "url", f"postgresql+psycopg://trainhealth:{password}@postgres:5432/trainhealth")
        write(database / "password", password)
    if not (grafana / "password").exists():
        write(grafana / "password", os.environ.get("GRAFANA_PASSWORD") or secrets.token_urlsafe(18))


def tokens() -> None:
    """Migrate, and make each token whose file is not there."""
    from monitor_service import token_commands
    from monitor_service.opening import open_database
    from monitor_service.tokens import Scope

    url = (SECRETS / "database" / "url").read_text()
    sys.stdout.write(f"the database is at revision {open_database(url)}\n")
    for who, scopes in TOKENS.items():
        file = SECRETS / who / "token"
        if not file.exists():
            token = token_commands.create(url, who, [Scope(scope) for scope in scopes], None, None)
            write(file, token["secret"])
            sys.stdout.write(f"made a token for {who}: {', '.join(scopes)}\n")


def main(words: list[str]) -> int:
    """One step; 2 for words that are none, 1 with a sentence where it cannot be done."""
    work = {"passwords": passwords, "tokens": tokens}.get(words[0] if len(words) == 1 else "")
    if work is None:
        sys.stderr.write("say one of: passwords, tokens\n")
        return 2
    try:
        work()
    except Exception as error:  # told in one line: nobody reads a traceback in `docker compose up`
        sys.stderr.write(f"{words[0]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What every answer tells a browser not to do. Pages say more about themselves (``web/pages.py``)."""

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STRICT_TRANSPORT = ("Strict-Transport-Security", "max-age=31536000")
"""Only over TLS, where a browser obeys it."""

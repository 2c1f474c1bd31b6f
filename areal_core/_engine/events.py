"""Every line the engine logs."""

from __future__ import annotations

from contextvars import Context
from typing import Any

from areal_core._log import get_logger, log

_SHORT = 500  # characters
_SHORTER = 200


def told(error: BaseException) -> str:
    """Return what *error* says, or its name where it says nothing, as a cancellation does."""
    return (str(error) or repr(error))[:_SHORT]


class Events:
    """The log of one engine. *logger* is a structlog or a standard logger, None for ours."""

    def __init__(self, logger: Any = None) -> None:
        self._logger = get_logger(logger)

    def server_out(self, server: str, why: str) -> None:
        self._of_all("warning", "server_out_of_rotation", server=server, why=why[:_SHORT])

    def server_in(self, server: str, version: int) -> None:
        self._of_all("info", "server_in_rotation", server=server, version=version)

    def server_stays_out(self, server: str, why: str) -> None:
        self._of_all("warning", "server_stays_out_of_rotation", server=server, why=why[:_SHORT])

    def server_is_slow(self, server: str, each: float, others: float) -> None:
        """Tell of one that gives a request *each* tokens per second, where *others* are usual."""
        self._of_all(
            "warning",
            "server_is_slow",
            server=server,
            tokens_per_s=round(each, 1),
            others=round(others, 1),
            remedy="see what else its machine does; remove_server() has the others do its work",
        )

    def server_is_avoided(self, server: str, failed: int, error: BaseException) -> None:
        """Tell of one in rotation that others work for, as so many *failed* in a row, the last by *error*."""
        self._of_all("warning", "server_is_avoided", server=server, failed=failed, error=told(error))

    def _of_all(self, level: str, event: str, **fields: Any) -> None:
        """Log what concerns all episodes: without what the one that met it first has bound to its context.

        Never raises: it is said in the midst of what has to go on.
        """
        Context().run(log, self._logger, level, event, fields)

    def attempt_failed(self, conversation: str, server: str, error: BaseException, wait_s: float) -> None:
        """Tell of one that is made again, with the tokens that had come."""
        text = told(error)
        self._logger.info(
            "attempt_failed",
            conversation=conversation,
            server=server,
            error=text if len(text) <= _SHORTER else f"{text[:_SHORTER]}...",
            again_after_s=round(wait_s, 3),
        )

    def weights_updated(self, version: int, path: str, seconds: float, servers: int) -> None:
        self._logger.info(
            "weights_updated", version=version, path=path, seconds=round(seconds, 3), servers=servers
        )

    def weights_not_updated(self, version: int, error: BaseException) -> None:
        self._logger.error("weights_not_updated", version=version, error=told(error))

    def waits_for_open_generation(self, seconds: float, waiting: int, opens: str) -> None:
        """Tell that generations wait; what is called *opens* lets them go on."""
        self._of_all(
            "warning",
            "generation_is_paused",
            seconds=round(seconds, 1),
            waiting=waiting,
            remedy=f"{opens} opens it",
        )

    def version_subscriber_raised(self, error: BaseException) -> None:
        self._logger.error("version_subscriber_raised", error=told(error), exc_info=error)

    def generation_subscriber_raised(self, error: BaseException) -> None:
        self._logger.error("generation_subscriber_raised", error=told(error), exc_info=error)

    def prober_failed(self, server: str, error: BaseException) -> None:
        self._logger.error("probe_failed", server=server, error=told(error), exc_info=error)

    def prober_died(self, error: BaseException) -> None:
        self._logger.error("prober_died", error=told(error), exc_info=error)

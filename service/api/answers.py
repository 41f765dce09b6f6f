"""How an error becomes an answer, whoever refuses: `application/problem+json`.

Under /v2 it is `{"error": "code: message"}`, as the Open Inference Protocol wants it.
"""

import re
from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.api.schemas import Problem
from service.errors import BadRequest, ServiceError, Unauthorized, Unprocessable

ERRORS = (ServiceError, HTTPException, RequestValidationError, ClientDisconnect, Exception)
"""What `answer_error` is registered for."""
_ROUTER_REFUSALS = {
    404: ("not_found", "there is no such route; /docs lists them all"),
    405: ("method_not_allowed", "expected a method that the header Allow lists, got another"),
}
"""Code and message of what the router refuses by itself."""
_OF_THE_PROTOCOL = re.compile(r"/v2(?:/|$)")


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Return the answer that an error is; what is not ours says nothing of itself."""
    headers: dict[str, str] = {}
    match error:
        case ServiceError():
            status, title = error.status, error.title
            code, detail = error.code, error.message
            if error.retry_after_s is not None:
                headers["Retry-After"] = str(error.retry_after_s)
            if isinstance(error, Unauthorized):
                headers["WWW-Authenticate"] = 'Bearer realm="levit"'
        case HTTPException():
            status, title = error.status_code, HTTPStatus(error.status_code).phrase
            code, detail = _ROUTER_REFUSALS.get(status, ("refused", error.detail))
            headers |= error.headers or {}
        case RequestValidationError():
            status, title = Unprocessable.status, Unprocessable.title
            code, detail = "bad_parameter", _parameter_problem(error)
        case ClientDisconnect():
            status, title = BadRequest.status, BadRequest.title
            code, detail = "incomplete_body", "expected the whole body, got its beginning"
        case _:
            status, title = 500, ServiceError.title
            code, detail = "internal", "the service failed; its log says how"
    if _OF_THE_PROTOCOL.match(request.url.path):
        return JSONResponse({"error": f"{code}: {detail}"}, status, headers)
    problem = Problem(title=title, status=status, code=code, detail=detail)
    return JSONResponse(
        problem.model_dump(), status, headers, media_type="application/problem+json"
    )


def _parameter_problem(error: RequestValidationError) -> str:
    """Return in words what is wrong with a parameter of the path or the query."""
    first = error.errors()[0]
    return f"{first['loc'][-1]}: {first['msg']}, got {str(first['input'])[:40]!a}"

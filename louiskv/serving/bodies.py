"""The bodies of requests."""

from starlette.requests import Request

from louiskv.serving.errors import ApiError


async def body_of(request: Request, max_body: int) -> bytes:
    """The body, as long as it has no more than so many bytes.

    Raises:
        ApiError: 413 if it has; 400 if it is not said to be JSON, which no web page may say without being asked for.
    """
    message = f"The body has more than the {max_body} bytes that this server takes."
    too_large = ApiError(413, message, code="request_too_large")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > max_body:
        raise too_large
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "Send JSON, with the header Content-Type: application/json.", code="invalid_content_type")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_body:
            raise too_large
    return bytes(body)

"""Whether the texts in a model can be read: protobuf looks at their bytes only when somebody asks for one."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]


def check_text(message: Message) -> None:
    """Read every text in ``message`` and in the messages nested in it; numbers and bytes are left alone.

    Raises:
        ValueError: A text is no UTF-8; as a UnicodeDecodeError, where protobuf does not give its bytes in that case.
    """
    texts, nested = _fields(message.DESCRIPTOR)
    for name in texts:
        value = getattr(message, name)
        if not all(isinstance(one, str) for one in ([value] if isinstance(value, str | bytes) else value)):
            raise ValueError(f"the text '{name}' of a {message.DESCRIPTOR.name} is no UTF-8")
    for name in nested:
        value = getattr(message, name)
        if not isinstance(value, Message):
            for one in value:
                check_text(one)
        elif message.HasField(name):
            check_text(value)


@cache
def _fields(descriptor: Descriptor) -> tuple[list[str], list[str]]:
    """Return the names of the fields that are texts, and of those that are messages."""
    texts, messages = (
        [field.name for field in descriptor.fields if field.type == kind]
        for kind in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
    )
    return texts, messages

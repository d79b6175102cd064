from client_service import receiver, service

__all__ = ["receiver", "service"]

"""Django view of an upload: gunicorn --chdir examples --threads 8 django_view:application.

    curl -F image=@cat.jpg localhost:8000/classify

A project of one file, which its own settings would replace. Needs django and a WSGI server.
RESNET50_SERVER names the model server.
"""

from __future__ import annotations

from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponseBase, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from resnet50_client import Client, InvalidImageError, OverloadedError, UnavailableError

if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["localhost", "testserver"])

# One client for all threads. It connects at its first call, in each process of gunicorn.
client = Client.from_environment(timeout_s=10.0)


@csrf_exempt  # for curl; forms of a site keep Django's protection
@require_POST
def classify(request: WSGIRequest) -> HttpResponseBase:
    """Classify the form's file `image`."""
    image = request.FILES.get("image")
    if image is None:
        return JsonResponse({"detail": "image: is missing from the form"}, status=400)
    try:
        result = client.classify(image, top_k=3)
    except InvalidImageError as error:
        return JsonResponse({"detail": error.message, "field": error.field}, status=422)
    except (OverloadedError, UnavailableError, TimeoutError) as error:
        return JsonResponse({"detail": str(error)}, status=503, headers={"Retry-After": "1"})
    return JsonResponse(result.to_dict())


urlpatterns = [path("classify", classify)]
application = get_wsgi_application()

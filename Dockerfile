# The program, with the example handler beside it. See docker-compose.yml.

FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pyjobs ./pyjobs
COPY sql ./sql
COPY migrations ./migrations
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin pyjobs
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/pyjobs-*.whl)[binary]" && rm -r /wheels
# Handlers are found in the working folder. An image of your own copies its modules there.
WORKDIR /app
COPY examples/python/ ./
ENV PYTHONDONTWRITEBYTECODE=1
# A number, so that a platform can see that it is not root.
USER 10001:10001
ENTRYPOINT ["pyjobs"]
CMD ["--help"]

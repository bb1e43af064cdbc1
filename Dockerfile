# Builds one static binary and ships nothing else: no shell, no package manager, no root.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/bin/memoryd ./cmd/memoryd
# A volume mounted at /data takes owner and mode from this folder; uploads and SQLite spill into /tmp.
RUN install -d -o 65532 -g 65532 -m 0700 /out/data && install -d -m 1777 /out/tmp \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt \
    && printf 'memoryd:x:65532:65532::/data:/\n' >/out/etc/passwd

FROM scratch
COPY --from=build --link /out/etc /etc
COPY --from=build --link /out/bin /bin
COPY --from=build /out/tmp /tmp
COPY --from=build --chown=65532:65532 /out/data /data
ENV NODE_ENV=production PORT=3001 STORAGE_PATH=/data
VOLUME /data
EXPOSE 3001
USER 65532:65532
ENTRYPOINT ["/bin/memoryd"]
CMD ["serve"]

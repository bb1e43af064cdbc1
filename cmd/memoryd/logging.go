package main

import (
	"errors"
	"io"
	"log/slog"

	"gopkg.in/natefinch/lumberjack.v2"
)

// newLog builds the logger: text for people in development, JSON in production, and there a rotated file besides.
func newLog(s *settings, stderr io.Writer) (*slog.Logger, func()) {
	var level slog.Level
	_ = level.UnmarshalText([]byte(s.text("LOG_LEVEL"))) // checked when loaded
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: shortenErrors}
	format := s.text("LOG_FORMAT")
	if format == "" && s.production() {
		format = "json"
	}
	handler := func(w io.Writer, format string) slog.Handler {
		if format == "json" {
			return slog.NewJSONHandler(w, opts)
		}
		return slog.NewTextHandler(w, opts)
	}
	console := handler(stderr, format)
	path := s.text("LOG_FILE")
	if path == "" && s.production() {
		path = s.storage("logs", "memoryd.log")
	}
	if path == "" || path == "off" {
		return slog.New(console), func() {}
	}
	file := &lumberjack.Logger{Filename: path, MaxSize: 100, MaxBackups: 10, MaxAge: 30, Compress: true}
	return slog.New(slog.NewMultiHandler(console, handler(file, "json"))), func() { _ = file.Close() }
}

// shortenErrors keeps logs readable: an error is its text, once, of bounded length.
func shortenErrors(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok && err != nil {
		text := err.Error()
		if len(text) > 600 {
			text = text[:600] + "…"
		}
		return slog.Any(a.Key, errors.New(text))
	}
	return a
}

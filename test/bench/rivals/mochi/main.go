// The broker as its own documentation sets it up: `mochi PORT [CERT KEY]`.
package main

import (
	"crypto/tls"
	"log"
	"log/slog"
	"os"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
)

func main() {
	level := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})
	server := mqtt.New(&mqtt.Options{Logger: slog.New(level)})
	if err := server.AddHook(new(auth.AllowHook), nil); err != nil {
		log.Fatal(err)
	}
	config := listeners.Config{Type: "tcp", ID: "bench", Address: "127.0.0.1:" + os.Args[1]}
	if len(os.Args) > 3 {
		pair, err := tls.LoadX509KeyPair(os.Args[2], os.Args[3])
		if err != nil {
			log.Fatal(err)
		}
		config.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	if err := server.AddListener(listeners.NewTCP(config)); err != nil {
		log.Fatal(err)
	}
	if err := server.Serve(); err != nil {
		log.Fatal(err)
	}
	select {}
}

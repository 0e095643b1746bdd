// Command probe is what the cluster's own tests run in pods:
//
//	probe serve ADDRESS      answers every request with the host's name
//	probe get URL            retries until the URL answers, then prints the body
//	probe write FILE TEXT    writes a file
//	probe read FILE          waits until the file is there, then prints it
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const patience = 60 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: probe serve|get|write|read ARGUMENT")
	}
	switch args[0] {
	case "serve":
		return http.ListenAndServe(args[1], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			name, _ := os.Hostname()
			fmt.Fprintln(w, name)
		}))
	case "get":
		return retry(func() error { return get(args[1]) })
	case "write":
		return os.WriteFile(args[1], []byte(args[2]), 0o644)
	case "read":
		return retry(func() error {
			text, err := os.ReadFile(args[1])
			fmt.Print(string(text))
			return err
		})
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func get(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func retry(attempt func() error) error {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = attempt(); err == nil {
			return nil
		}
	}
	return err
}

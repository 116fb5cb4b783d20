// Command inside is what pods in end-to-end tests run: it tells over HTTP what
// a container looks like from within, and does what a test asks of it. It is
// no part of the product.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		check(serve(nil))
		return
	}
	args := append(os.Args[2:], "", "", "")
	switch os.Args[1] {
	case "serve":
		check(serve(os.Args[2:]))
	case "append": // FILE LINE
		check(appendLine(args[0], args[1]))
	case "exists": // FILE
		_, err := os.Stat(args[0])
		check(err)
	case "await": // FILE
		for ; !exists(args[0]); time.Sleep(10 * time.Millisecond) {
		}
	case "print":
		fmt.Println(args[0])
	case "end": // MESSAGE CODE: both to standard output and as exit status
		fmt.Println(args[0])
		os.Exit(number(args[1]))
	case "tell": // FILE MESSAGE CODE: a termination message
		check(os.WriteFile(args[0], []byte(args[1]), 0o644))
		os.Exit(number(args[2]))
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		forever()
	default:
		fmt.Fprintln(os.Stderr, "unknown command", os.Args[1])
		os.Exit(64)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, line); err != nil {
		return err
	}
	return f.Close()
}

func await() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	<-asked
}

func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
